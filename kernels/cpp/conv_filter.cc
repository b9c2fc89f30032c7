#include "conv_filter.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bnnedge/rounding.h"

namespace bnnedge {
namespace {

// Weights up to this size stay in the first-level cache while all blocks go over a row.
constexpr int64_t kFirstCacheBytes = 20 * 1024;

// The words of a window are chained column by column, so its columns must be neighbours in the image.
ChainRowFunction ChainRowFor(const ConvKernel& kernel, const BConv2dParams& p) {
  const bool are_neighbours = p.groups == 1 && (p.dilation_width == 1 || p.kernel_width == 1);
  if (kernel.chain == nullptr || !are_neighbours) return nullptr;
  return kernel.chain(p.kernel_height, p.kernel_height * p.kernel_width * p.FilterWords());
}

int32_t Popcount32(uint32_t bits) {
  bits -= (bits >> 1) & 0x55555555u;
  bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
  return static_cast<int32_t>((((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
}

}  // namespace

ConvFilter::ConvFilter(const ConvKernel& conv_kernel, const BConv2dParams& params, const uint32_t* filter,
                       const OutputTransform& output_transform)
    : kernel(conv_kernel),
      transform(output_transform),
      products(params.kernel_height * params.kernel_width * params.GroupChannels()),
      k_words(params.kernel_height * params.kernel_width * params.FilterWords()),
      group_outputs(params.out_channels / params.groups),
      group_blocks(CeilDiv(group_outputs, conv_kernel.block)),
      block_count(group_blocks * params.groups),
      padded_channels(block_count * conv_kernel.block),
      chain_row(ChainRowFor(conv_kernel, params)),
      merges_bits(transform.kind == OutputKind::kBits && params.groups > 1 && group_outputs % kWordBits != 0),
      has_tail(!transform.tail.IsEmpty()) {
  PackWeights(params, chain_row == nullptr ? filter : ChainFilter(params, filter).data());
  // A strip of pairs has several rows of one block, so the loop over blocks must be outside.
  rows_are_outside =
      !ReadsPairs() && (kernel.order == StripOrder::kRowsOutside || block_bytes * block_count <= kFirstCacheBytes);
  if (params.pad_value == 0) CountOnes(params, filter);
  multiplier = PadChannels(transform.multiplier);
  bias = PadChannels(transform.bias);
  if (transform.tail.writes_bits && transform.tail.limit.empty()) {
    transform.tail.limit.assign(static_cast<size_t>(params.out_channels), 0.0f);
  }
  if (CanHalve(params)) {
    half_multiplier = multiplier;
    for (float& value : half_multiplier) value *= IsDoubledPopcount() ? -2.0f : 2.0f;
  }
}

bool ConvFilter::Clamps() const {
  return transform.clamp_low > (IsDoubledPopcount() ? 0 : -products) ||
         transform.clamp_high < (IsDoubledPopcount() ? 2 * products : products);
}

// The running xor of each channel's words, column by column.
std::vector<uint32_t> ConvFilter::ChainFilter(const BConv2dParams& p, const uint32_t* filter) const {
  const int64_t columns = p.kernel_width * p.FilterWords();
  std::vector<uint32_t> chained;
  chained.reserve(static_cast<size_t>(p.out_channels * k_words));
  for (int64_t o = 0; o < p.out_channels; ++o, filter += k_words) {
    uint32_t running = 0;
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < p.kernel_height; ++r) chained.push_back(running ^= filter[r * columns + c]);
    }
  }
  return chained;
}

void ConvFilter::PackWeights(const BConv2dParams& p, const uint32_t* filter) {
  block_bytes = Aligned(kernel.packed_bytes(std::min(kernel.block, group_outputs), k_words));
  weights = AllocateAligned(block_bytes * block_count);
  for (int64_t i = 0; i < block_count; ++i) {
    const int64_t group = i / group_blocks, first = i % group_blocks * kernel.block;
    ChannelBlock block{};
    block.index = i;
    block.first_channel = group * group_outputs + first;
    block.channels = std::min(kernel.block, group_outputs - first);
    block.group_word = group * p.FilterWords();
    block.starts_group = first == 0;
    kernel.pack_weights(filter + block.first_channel * k_words, block.channels, k_words,
                        weights.get() + i * block_bytes);
    blocks.push_back(block);
  }
}

void ConvFilter::CountOnes(const BConv2dParams& p, const uint32_t* filter) {
  const int64_t width = p.kernel_width + 1, tap_words = p.FilterWords();
  ones.assign(static_cast<size_t>(p.out_channels * (p.kernel_height + 1) * width), 0);
  int32_t* table = ones.data();
  for (int64_t o = 0; o < p.out_channels; ++o, table += (p.kernel_height + 1) * width) {
    for (int64_t ky = 0; ky < p.kernel_height; ++ky) {
      int32_t row = 0;
      for (int64_t kx = 0; kx < p.kernel_width; ++kx) {
        for (int64_t w = 0; w < tap_words; ++w) row += Popcount32(*filter++);
        table[(ky + 1) * width + kx + 1] = table[ky * width + kx + 1] + row;
      }
    }
  }
}

std::vector<float> ConvFilter::PadChannels(const std::vector<float>& values) const {
  if (values.empty()) return {};
  std::vector<float> padded(static_cast<size_t>(padded_channels), 0.0f);
  for (size_t o = 0; o < values.size(); ++o) {
    padded[static_cast<size_t>(PaddedChannel(static_cast<int64_t>(o)))] = values[o];
  }
  return padded;
}

// Step 5 of conv_plan.cc says when.
bool ConvFilter::CanHalve(const BConv2dParams& p) const {
  const bool scales = transform.kind == OutputKind::kFloat || transform.kind == OutputKind::kInt8;
  using Limits = std::numeric_limits<float>;
  const auto doubles = [](float value) {
    return value == 0.0f || (std::abs(value) >= Limits::min() && std::abs(value) <= Limits::max() / 2);
  };
  return scales && p.GroupChannels() % 2 == 0 && !Clamps() &&
         std::all_of(multiplier.begin(), multiplier.end(), doubles);
}

}  // namespace bnnedge
