#pragma once

#include <memory>

#include "bnnedge/stem.h"

namespace bnnedge {

// A Stem that follows the steps of bnnedge/stem.h, one value at a time. The arguments have been checked.
std::unique_ptr<Stem> MakeReferenceStem(const StemParams& params, const StemWeights& weights, const Tail& tail);

// The multiplier of step 4 as a float, or as m and shift.
float FloatMultiplier(const StemParams& params, float filter_scale);
void FixedPointMultiplier(const StemParams& params, float filter_scale, int32_t* mantissa, int32_t* shift);

}  // namespace bnnedge
