// The signs of a convolution's float results as comparisons of integers.
//
// A result goes from v (Domain::kDoubledPopcount) through float operations of which each rises or falls with its input,
// rounding included. So in a channel all v above some threshold have one sign and all others the other one. Where the
// larger v are not the negative ones, the channel's filter is negated, which makes 2 K - v of v.
//
// A constant map may be among the operations: zero-padding of LCE files is padding with +1 and a map that takes away
// what the pixels around the image add. Its pixels differ by the taps that lie outside (border classes), and each class
// has thresholds of its own. In the v of true zero-padding, v + e for a known integer e (see conv.cc), they are mostly
// the same in all classes; then the convolution pads with zeros, and the map is gone.
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

// Of kFloat results that go through `steps`, whose residual is a constant if there is one. Returns false if there is no
// such comparison, or if numbers are so small that denormal numbers could count, which some hosts take for zero.
bool FindSigns(const BConv2dParams& params, const uint32_t* filter, const OutputTransform& transform, const TailBuilder& steps,
               Signs* signs);

// The filter [O, kh, kw, words] with some channels negated; empty if none is.
std::vector<uint32_t> Negated(const BConv2dParams& params, const uint32_t* filter, const std::vector<bool>& negated);

}  // namespace bnnedge::tflite
