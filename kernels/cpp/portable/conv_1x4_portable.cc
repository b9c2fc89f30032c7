#include "conv_1x4_scalar.h"
#include "pack_scalar.h"

namespace bnnedge {

const ConvKernel kConvPortable = {
    "portable",          kScalarBlock,       StripOrder::kBlocksOutside, ScalarPackedBytes,   ScalarPackWeights, nullptr,
    ScalarRun,           ScalarPackNhwcFloat, ScalarPackNhwcInt8,         ScalarPackNchwFloat, ScalarUnpackNhwc,  nullptr,
};

}  // namespace bnnedge
