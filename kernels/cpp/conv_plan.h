// The part of a prepared convolution that depends on the size of its input.
#pragma once

#include <string>
#include <vector>

#include "conv_filter.h"

namespace bnnedge {

// A run is cut into so many pieces at most, however many threads the host has; each has scratch in the workspace.
constexpr int64_t kMaxPieces = 32;

// A row of output pixels.
struct OutputRow {
  int64_t index;  // among the rows of all images
  int64_t image, y;
};

struct ConvPlan {
  BConv2dParams params{};
  int64_t in_words = 0, out_height = 0, out_width = 0;
  // Whether the image needs borders. If it does not, a kernel that reads plain words reads the caller's image.
  bool copies = false;
  int64_t rows = 0, columns = 0;  // of the image that the kernel reads
  int64_t chain_columns = 0;      // columns of a row of chained words, rounded up
  int64_t wrap_words = 0;         // words of the window at ConvStrip::wrap, before they are paired
  int64_t strip_rows = 1;
  int64_t image_row_words = 0;  // from one row of what the kernel reads to the next
  std::vector<ConvRun> runs;
  std::vector<int32_t> row_base;     // [out_height]: index into base
  std::vector<int32_t> column_base;  // [out_width]: is added to it
  std::vector<int32_t> base;         // [row classes][column classes][padded channels]
  std::vector<int32_t> half_base;    // the same for ConvStrip::half_base, or empty
  // Bytes of the image that is made for the kernel, of the kernel's scratch, and of all scratch of a piece.
  int64_t copy_bytes = 0, scratch_bytes = 0, piece_bytes = 0;

  OutputRow RowAt(int64_t index) const { return {index, index / out_height, index % out_height}; }
  // Moves on by rows of the same image.
  void Advance(OutputRow* row, int64_t count = 1) const {
    row->index += count;
    row->y += count;
    if (row->y == out_height) {
      row->y = 0;
      ++row->image;
    }
  }
  // Words of a row with its borders, followed by partners for its last pixels.
  int64_t PairLineWords() const { return (columns + params.stride_width) * in_words; }
};

// Fills `plan` for an input of the batch, height and width of `params`. Returns an empty string, or one sentence that
// says what is wrong with that size.
std::string MakeConvPlan(const ConvFilter& filter, const BConv2dParams& params, ConvPlan* plan);

}  // namespace bnnedge
