// The part of a prepared convolution that does not depend on the size of its input: the filter as its kernel wants it,
// cut into blocks of output channels, and the parameters of its output transform.
#pragma once

#include <vector>

#include "bnnedge/aligned.h"
#include "bnnedge/conv_kernel.h"

namespace bnnedge {

// The output channels of one strip.
struct ChannelBlock {
  int64_t index, first_channel, channels;
  int64_t group_word;  // first word of the group in a pixel
  bool starts_group;
};

struct ConvFilter {
  // The arguments have been checked.
  ConvFilter(const ConvKernel& conv_kernel, const BConv2dParams& params, const uint32_t* filter,
             const OutputTransform& output_transform);

  const ConvKernel& kernel;
  OutputTransform transform;  // a tail that writes bits has its limits
  const int64_t products;     // K, of one output
  const int64_t k_words;
  const int64_t group_outputs, group_blocks, block_count;
  const int64_t padded_channels;     // each group's output channels rounded up to whole blocks
  const ChainRowFunction chain_row;  // nullptr: the kernel reads plain words, or pairs
  const bool merges_bits;            // groups whose output bits do not fill whole words
  const bool has_tail;
  bool rows_are_outside = false;  // the loop over rows contains the loop over blocks
  int64_t block_bytes = 0;
  AlignedBytes weights;
  std::vector<ChannelBlock> blocks;
  // ones[o][ky][kx] of (kernel_height + 1) x (kernel_width + 1): the bits that are set in the filter of channel o at
  // the taps above and left of (ky, kx), both exclusive. Empty if the taps outside of the image count.
  std::vector<int32_t> ones;
  std::vector<float> multiplier, bias, half_multiplier;  // [padded channels], or empty

  bool ReadsPairs() const { return kernel.pair_words != nullptr; }
  // Words that the kernel reads for each word of the image.
  int64_t ReadWords() const { return ReadsPairs() ? kPairWords : 1; }
  bool IsDoubledPopcount() const { return transform.domain == Domain::kDoubledPopcount; }
  // Whether the two limits of the clamp hold any accumulator back.
  bool Clamps() const;
  int64_t PaddedChannel(int64_t o) const { return o / group_outputs * group_blocks * kernel.block + o % group_outputs; }

 private:
  std::vector<uint32_t> ChainFilter(const BConv2dParams& params, const uint32_t* filter) const;
  void PackWeights(const BConv2dParams& params, const uint32_t* filter);
  void CountOnes(const BConv2dParams& params, const uint32_t* filter);
  std::vector<float> PadChannels(const std::vector<float>& values) const;
  bool CanHalve(const BConv2dParams& params) const;
};

}  // namespace bnnedge
