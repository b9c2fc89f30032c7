// Follows the definition in bnnedge/bconv2d.h one bit at a time.
#include "bnnedge/bconv2d.h"

namespace bnnedge {
namespace {

int32_t Value(const uint32_t* words, int64_t channel) {
  return (words[channel / kWordBits] >> (channel % kWordBits)) & 1u ? -1 : 1;
}

// The sum of one output; `image` is one sample and `filter` one output channel's weights.
int32_t OneOutput(const BConv2dParams& p, const uint32_t* image, const uint32_t* filter, int64_t out_y, int64_t out_x,
                  int64_t group) {
  int32_t sum = 0;
  for (int64_t ky = 0; ky < p.kernel_height; ++ky) {
    for (int64_t kx = 0; kx < p.kernel_width; ++kx) {
      const int64_t y = out_y * p.stride_height + ky * p.dilation_height - p.pad_top;
      const int64_t x = out_x * p.stride_width + kx * p.dilation_width - p.pad_left;
      const bool inside = y >= 0 && y < p.in_height && x >= 0 && x < p.in_width;
      const uint32_t* tap = filter + (ky * p.kernel_width + kx) * p.FilterWords();
      for (int64_t c = 0; c < p.GroupChannels(); ++c) {
        int32_t value = static_cast<int32_t>(p.pad_value);
        if (inside) value = Value(image + (y * p.in_width + x) * p.InWords(), group * p.GroupChannels() + c);
        sum += value * Value(tap, c);
      }
    }
  }
  return sum;
}

}  // namespace

void BConv2dReference(const BConv2dParams& p, const uint32_t* input, const uint32_t* filter, int32_t* sums) {
  const int64_t image_words = p.in_height * p.in_width * p.InWords();
  const int64_t filter_words = p.kernel_height * p.kernel_width * p.FilterWords();
  const int64_t out_per_group = p.out_channels / p.groups;
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t y = 0; y < p.OutHeight(); ++y) {
      for (int64_t x = 0; x < p.OutWidth(); ++x) {
        for (int64_t o = 0; o < p.out_channels; ++o) {
          *sums++ = OneOutput(p, input + n * image_words, filter + o * filter_words, y, x, o / out_per_group);
        }
      }
    }
  }
}

}  // namespace bnnedge
