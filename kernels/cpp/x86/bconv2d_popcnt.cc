// Compiled with -mpopcnt; select.cc calls it only where the CPU has the instruction.
#include "../portable/bconv2d_runs.h"

namespace bnnedge {

void BConv2dPopcnt(const BConv2dParams& params, const uint32_t* input, const uint32_t* filter, int32_t* sums) {
  RunConvolution(params, filter).Compute(input, sums);
}

}  // namespace bnnedge
