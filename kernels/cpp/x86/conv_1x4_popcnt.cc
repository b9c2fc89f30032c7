// The scalar convolution compiled with -mpopcnt; select.cc offers it only where the CPU has the instruction.
#include "../portable/conv_1x4_scalar.h"
#include "../portable/tail.h"

namespace bnnedge {

constexpr ConvKernel kConvPopcnt = [] {
  ConvKernel kernel;
  kernel.name = "popcnt";
  kernel.block = kScalarBlock;
  kernel.order = StripOrder::kBlocksOutside;
  kernel.packed_bytes = ScalarPackedBytes;
  kernel.pack_weights = ScalarPackWeights;
  kernel.run = ScalarRun;
  kernel.run_tail = RunTail<ScalarLanes>;
  return kernel;
}();

}  // namespace bnnedge
