// The output size of a sliding window along one axis.
#pragma once

#include <cstdint>

namespace bnnedge {

// How many windows of `kernel` taps fit into `size` elements with `pads` more on both sides together; 0 if none does.
// All arguments are at most 2^31.
constexpr int64_t OutputSize(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t pads) {
  const int64_t room = size + pads - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace bnnedge
