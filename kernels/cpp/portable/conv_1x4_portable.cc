#include "conv_1x4_scalar.h"
#include "pack_scalar.h"
#include "tail.h"

namespace bnnedge {

const ConvKernel kConvPortable = {
    "portable",               kScalarBlock,        StripOrder::kBlocksOutside, ScalarPackedBytes,   ScalarPackWeights, nullptr,
    ScalarRun,           FinishTail<ScalarLanes>, false,
    ScalarPackNhwcFloat, ScalarPackNhwcInt8,  ScalarPackNchwFloat, ScalarUnpackNhwc,    nullptr,
};

}  // namespace bnnedge
