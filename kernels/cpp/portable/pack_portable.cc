#include "bnnedge/pack_kernel.h"
#include "pack_scalar.h"

namespace bnnedge {

constexpr PackKernel kPackPortable = [] {
  PackKernel kernel;
  kernel.pack_nhwc_float = ScalarPackNhwcFloat;
  kernel.pack_nhwc_float_by_channel = ScalarPackNhwcFloatByChannel;
  kernel.pack_nhwc_int8 = ScalarPackNhwcInt8;
  kernel.pack_nchw_float = ScalarPackNchwFloat;
  kernel.unpack_nhwc = ScalarUnpackNhwc;
  return kernel;
}();

}  // namespace bnnedge
