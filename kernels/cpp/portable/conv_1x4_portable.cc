#include "conv_1x4_scalar.h"
#include "tail.h"

namespace bnnedge {

constexpr ConvKernel kConvPortable = [] {
  ConvKernel kernel;
  kernel.name = "portable";
  kernel.block = kScalarBlock;
  kernel.order = StripOrder::kBlocksOutside;
  kernel.packed_bytes = ScalarPackedBytes;
  kernel.pack_weights = ScalarPackWeights;
  kernel.run = ScalarRun;
  kernel.run_tail = RunTail<ScalarLanes>;
  return kernel;
}();

}  // namespace bnnedge
