// Compiled with -mpopcnt; select.cc offers it only where the CPU has the instruction.
#include "../portable/conv_1x4_scalar.h"
#include "../portable/pack_scalar.h"
#include "../portable/tail.h"

namespace bnnedge {

const ConvKernel kConvPopcnt = {
    "popcnt",               kScalarBlock,        StripOrder::kBlocksOutside, ScalarPackedBytes,   ScalarPackWeights, nullptr,
    ScalarRun,           FinishTail<ScalarLanes>, false,
    ScalarPackNhwcFloat, ScalarPackNhwcInt8,  ScalarPackNchwFloat, ScalarUnpackNhwc,    nullptr,
};

}  // namespace bnnedge
