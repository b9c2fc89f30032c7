// The tail of a residual block (bnnedge/conv.h), as convolutions and stems pass it on to a kernel.
#pragma once

#include <string>

#include "bnnedge/conv_kernel.h"

namespace bnnedge {

// Returns an empty string, or one sentence that says what is wrong with the tail of `channels` output channels.
std::string CheckTail(const Tail& tail, int64_t channels);

// Sets the range of the clip and, from `first_channel` on, the parameters of the channels. Inline, as strips are short.
inline void SetTail(const Tail& tail, int64_t first_channel, TailStrip* strip) {
  const auto from = [first_channel](const std::vector<float>& values) {
    return values.empty() ? nullptr : values.data() + first_channel;
  };
  strip->slope = from(tail.slope);
  strip->offset = from(tail.offset);
  strip->limit = from(tail.limit);
  strip->low = tail.low;
  strip->high = tail.high;
}

}  // namespace bnnedge
