#include "conv_input.h"

#include <algorithm>

namespace bnnedge {
namespace {

// The words of a row that come from the image, between the borders.
int64_t InsideWords(const ConvPlan& plan) {
  const BConv2dParams& p = plan.params;
  return std::clamp<int64_t>(plan.columns - p.pad_left, 0, p.in_width) * plan.in_words;
}

// A row outside of the image is all border.
void CopyRow(const ConvPlan& plan, const uint32_t* input, int64_t image, int64_t row, uint32_t* to) {
  const BConv2dParams& p = plan.params;
  const int64_t words = plan.in_words, inside = InsideWords(plan), y = row - p.pad_top;
  uint32_t* const end = to + plan.columns * words;
  if (y >= 0 && y < p.in_height && inside > 0) {
    const uint32_t* const from = input + (image * p.in_height + y) * p.in_width * words;
    to = std::fill_n(to, p.pad_left * words, 0u);
    to = std::copy(from, from + inside, to);
  }
  std::fill(to, end, 0u);
}

}  // namespace

void CopyRows(const ConvPlan& plan, const uint32_t* input, int64_t first, int64_t last, uint32_t* copy) {
  for (int64_t row = first; row < last; ++row) {
    CopyRow(plan, input, row / plan.rows, row % plan.rows, copy + row * plan.image_row_words);
  }
}

void PairRows(const ConvPlan& plan, const ConvKernel& kernel, const uint32_t* input, int64_t first, int64_t last,
              uint32_t* lines, uint32_t* pairs) {
  const BConv2dParams& p = plan.params;
  const int64_t row_words = plan.columns * plan.in_words, step = p.stride_width * plan.in_words;
  uint32_t *const line = lines, *const next_line = lines + plan.PairLineWords();
  std::fill_n(line + row_words, step, 0u);
  for (int64_t index = first; index < last; ++index) {
    const int64_t image = index / plan.rows, row = index % plan.rows;
    uint32_t* const to = pairs + index * plan.image_row_words;
    CopyRow(plan, input, image, row, line);
    kernel.pair_words(line, line + step, row_words, to);
    if (plan.wrap_words == 0) continue;
    CopyRow(plan, input, image, row + p.stride_height, next_line);
    const uint32_t* const last_window = line + (plan.out_width - 1) * step;
    kernel.pair_words(last_window, next_line, plan.wrap_words, to + row_words * kPairWords);
  }
}

void ChainRow(const ConvPlan& plan, ChainRowFunction chain_row, const uint32_t* input, const OutputRow& row,
              uint32_t* to) {
  const BConv2dParams& p = plan.params;
  const int64_t words = plan.in_words;
  ChainedRow chain{};
  chain.left = p.pad_left * words;
  chain.inside = InsideWords(plan);
  chain.columns = plan.columns * words;
  int64_t y = row.y * p.stride_height - p.pad_top;
  for (int64_t r = 0; r < p.kernel_height; ++r, y += p.dilation_height) {
    const bool is_inside = y >= 0 && y < p.in_height;
    chain.rows[r] = is_inside ? input + (row.image * p.in_height + y) * p.in_width * words : nullptr;
  }
  chain.chained = to + kChainLead;
  chain.ones = reinterpret_cast<int32_t*>(chain.chained) + plan.chain_columns * p.kernel_height;
  chain_row(chain);
}

}  // namespace bnnedge
