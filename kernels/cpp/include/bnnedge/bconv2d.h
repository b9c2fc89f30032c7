// The binary convolution: its parameters, their limits, and what is computed.
//
// In steps, for output pixel (y, x) and output channel o, with Cg = channels / groups:
//   1. A tap (ky, kx) is inside if the pixel (y * stride + ky * dilation - pad_top, ...) is in the image.
//   2. A tap inside adds Cg - 2 * popcount(a xor w) over the words of o's group.
//   3. A tap outside adds 0 with pad_value 0, or Cg - 2 * popcount(w) with pad_value 1, as words of 0 mean +1.
// conv_plan.cc derives how a prepared convolution computes it.
#pragma once

#include <cstdint>
#include <string>

#include "bnnedge/layout.h"
#include "bnnedge/output_size.h"

namespace bnnedge {

struct BConv2dParams {
  int64_t batch, in_height, in_width;
  int64_t channels;  // all groups together
  int64_t out_channels;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t dilation_height, dilation_width;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t pad_value;  // 0 or 1
  int64_t groups;

  int64_t GroupChannels() const { return channels / groups; }
  int64_t InWords() const { return WordsFor(channels); }             // per pixel
  int64_t FilterWords() const { return WordsFor(GroupChannels()); }  // per tap
  int64_t OutHeight() const {
    return OutputSize(in_height, kernel_height, stride_height, dilation_height, pad_top + pad_bottom);
  }
  int64_t OutWidth() const {
    return OutputSize(in_width, kernel_width, stride_width, dilation_width, pad_left + pad_right);
  }
};

// Element counts of the three buffers.
struct BConv2dSizes {
  int64_t input_words, filter_words, outputs;
};

// Checks everything that a kernel relies on. Returns an empty string and the sizes, or one sentence that says what is
// wrong.
std::string CheckBConv2d(const BConv2dParams& params, BConv2dSizes* sizes);

// Follows the steps above bit by bit. The parameters have been checked.
// input [N, H, W, InWords], filter [O, kh, kw, FilterWords], sums [N, OH, OW, O].
void BConv2dReference(const BConv2dParams& params, const uint32_t* input, const uint32_t* filter, int32_t* sums);

}  // namespace bnnedge
