#include <algorithm>

#include "../border.h"
#include "bnnedge/conv.h"

namespace bnnedge {

void BMaxPool2d(const BMaxPoolParams& p, const uint32_t* input, uint32_t* output) {
  const int64_t row_words = p.in_width * p.words;
  for (int64_t n = 0; n < p.batch; ++n, input += p.in_height * row_words) {
    for (int64_t out_y = 0; out_y < p.out_height; ++out_y) {
      const int64_t y = out_y * p.stride_height - p.pad_top;
      const TapRange rows = TapRange::Inside(y, 1, p.in_height, p.kernel_height);
      for (int64_t out_x = 0; out_x < p.out_width; ++out_x, output += p.words) {
        const int64_t x = out_x * p.stride_width - p.pad_left;
        const TapRange columns = TapRange::Inside(x, 1, p.in_width, p.kernel_width);
        std::fill_n(output, p.words, ~0u);
        for (int64_t ky = rows.first; ky < rows.last; ++ky) {
          const uint32_t* pixel = input + (y + ky) * row_words + (x + columns.first) * p.words;
          for (int64_t kx = columns.first; kx < columns.last; ++kx, pixel += p.words) {
            for (int64_t w = 0; w < p.words; ++w) output[w] &= pixel[w];
          }
        }
      }
    }
  }
}

}  // namespace bnnedge
