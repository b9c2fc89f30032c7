#include "bnnedge/bconv2d.h"
#include "bconv2d_runs.h"

namespace bnnedge {

void BConv2dPortable(const BConv2dParams& params, const uint32_t* input, const uint32_t* filter, int32_t* sums) {
  RunConvolution(params, filter).Compute(input, sums);
}

}  // namespace bnnedge
