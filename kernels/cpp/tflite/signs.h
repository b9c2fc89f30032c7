// The signs of a convolution's float results as comparisons of integers.
//
//   1. A result is computed from the accumulator v (Domain::kDoubledPopcount) by float operations each of which rises
//      or falls with its input, rounding included. So in each channel all v above some threshold give one sign, and all
//      others give the other one.
//   2. Where the larger v do not give the negative sign, the channel's filter is negated, which turns v into 2 K - v.
//   3. One of the operations may add a constant map. LCE files express zero-padding as padding with +1 and the addition
//      of a map that subtracts the contribution of the pixels around the image. The values of the map depend on which
//      taps lie outside (border classes), and each class has a threshold of its own.
//   4. With true zero-padding the accumulator is v + e for a known integer e (conv_plan.cc), and the thresholds are
//      mostly the same in all classes. If they are, the convolution pads with zeros and needs no map.
#pragma once

#include <cstdint>
#include <vector>

#include "bnnedge/conv.h"
#include "fuse.h"

namespace bnnedge::tflite {

struct Signs {
  std::vector<int32_t> threshold;  // [O]: negative where v is above
  std::vector<bool> negated;       // [O]
  int64_t pad_value = 0;
};

// Finds the comparison for kFloat results that go through `steps`, whose residual, if any, is a constant. Returns false
// if there is none, or if numbers are so small that denormal numbers could matter, which some hosts flush to zero.
bool FindSigns(const BConv2dParams& params, const uint32_t* filter, const OutputTransform& transform,
               const TailBuilder& steps, Signs* signs);

// The filter [O, kh, kw, words] with the channels of `negated` negated; empty if there are none.
std::vector<uint32_t> Negated(const BConv2dParams& params, const uint32_t* filter, const std::vector<bool>& negated);

}  // namespace bnnedge::tflite
