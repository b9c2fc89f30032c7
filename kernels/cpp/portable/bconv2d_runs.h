// The scalar popcount convolution, written once and compiled for several instruction sets. The unnamed namespace is
// on purpose: each file that includes this gets its own code, so that none compiled for a newer CPU is linked into
// another.
//
// Words that are neighbours both in the image and in the filter form a *run*: with dilation 1 and one group the inside
// taps of a kernel row, else the words of one tap. A run is walked 64 bits at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "bnnedge/bconv2d.h"

namespace bnnedge {
namespace {

struct Run {
  const uint32_t* input;
  int64_t filter_offset;  // words from the start of the output channel's filter
  int64_t words;
};

inline int64_t Popcount64(uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_popcountll(bits);
#else
  bits -= (bits >> 1) & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + ((bits >> 2) & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int64_t>((bits * 0x0101010101010101u) >> 56);
#endif
}

inline int64_t PopcountXor(const uint32_t* a, const uint32_t* b, int64_t words) {
  int64_t total = 0;
  int64_t i = 0;
  for (; i + 2 <= words; i += 2) {
    uint64_t x, y;
    std::memcpy(&x, a + i, sizeof(x));
    std::memcpy(&y, b + i, sizeof(y));
    total += Popcount64(x ^ y);
  }
  if (i < words) total += Popcount64(a[i] ^ b[i]);
  return total;
}

// First tap at or after which the position start + tap * dilation is >= limit, at most `taps`.
inline int64_t FirstTapAtLeast(int64_t start, int64_t dilation, int64_t limit, int64_t taps) {
  if (start >= limit) return 0;
  return std::min(taps, (limit - start + dilation - 1) / dilation);
}

// Taps [first, last) whose position lies in [0, size).
struct TapRange {
  int64_t first, last;
  TapRange(int64_t start, int64_t dilation, int64_t size, int64_t taps)
      : first(FirstTapAtLeast(start, dilation, 0, taps)), last(FirstTapAtLeast(start, dilation, size, taps)) {}
  int64_t Count() const { return last - first; }
};

class RunConvolution {
 public:
  RunConvolution(const BConv2dParams& params, const uint32_t* filter)
      : p_(params),
        filter_(filter),
        in_words_(params.InWords()),
        tap_words_(params.FilterWords()),
        out_words_(params.kernel_height * params.kernel_width * params.FilterWords()) {
    if (p_.pad_value == 1) CountFilterBits();
  }

  void Compute(const uint32_t* input, int32_t* sums) {
    const int64_t image_words = p_.in_height * p_.in_width * in_words_;
    const int64_t out_height = p_.OutHeight(), out_width = p_.OutWidth();
    for (int64_t n = 0; n < p_.batch; ++n, input += image_words) {
      for (int64_t y = 0; y < out_height; ++y) {
        for (int64_t x = 0; x < out_width; ++x, sums += p_.out_channels) Pixel(input, y, x, sums);
      }
    }
  }

 private:
  // tap_bits_[tap * O + o] = popcount of the filter of output channel o at that tap.
  void CountFilterBits() {
    const int64_t taps = p_.kernel_height * p_.kernel_width;
    const std::vector<uint32_t> zeros(static_cast<size_t>(tap_words_), 0);
    tap_bits_.resize(static_cast<size_t>(taps * p_.out_channels));
    for (int64_t o = 0; o < p_.out_channels; ++o) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        tap_bits_[static_cast<size_t>(tap * p_.out_channels + o)] =
            PopcountXor(filter_ + o * out_words_ + tap * tap_words_, zeros.data(), tap_words_);
      }
    }
  }

  void Pixel(const uint32_t* image, int64_t out_y, int64_t out_x, int32_t* sums) {
    const int64_t y = out_y * p_.stride_height - p_.pad_top;
    const int64_t x = out_x * p_.stride_width - p_.pad_left;
    const TapRange rows(y, p_.dilation_height, p_.in_height, p_.kernel_height);
    const TapRange columns(x, p_.dilation_width, p_.in_width, p_.kernel_width);
    FindRuns(image, y, x, rows, columns);
    const int64_t inside = rows.Count() * columns.Count();
    const int64_t taps = p_.pad_value == 1 ? p_.kernel_height * p_.kernel_width : inside;
    const int64_t group_outputs = p_.out_channels / p_.groups;
    for (int64_t o = 0; o < p_.out_channels; ++o) {
      const uint32_t* filter = filter_ + o * out_words_;
      const int64_t group_words = o / group_outputs * tap_words_;
      int64_t bits = 0;
      for (const Run& run : runs_) bits += PopcountXor(run.input + group_words, filter + run.filter_offset, run.words);
      sums[o] = static_cast<int32_t>(p_.GroupChannels() * taps - 2 * bits);
    }
    if (taps != inside) SubtractOutside(rows, columns, sums);
  }

  void FindRuns(const uint32_t* image, int64_t y, int64_t x, const TapRange& rows, const TapRange& columns) {
    runs_.clear();
    const bool neighbours = p_.groups == 1 && p_.dilation_width == 1;
    const int64_t step = neighbours ? std::max<int64_t>(columns.Count(), 1) : 1;
    for (int64_t ky = rows.first; ky < rows.last; ++ky) {
      const uint32_t* row = image + (y + ky * p_.dilation_height) * p_.in_width * in_words_;
      for (int64_t kx = columns.first; kx < columns.last; kx += step) {
        const uint32_t* pixel = row + (x + kx * p_.dilation_width) * in_words_;
        runs_.push_back({pixel, (ky * p_.kernel_width + kx) * tap_words_, step * tap_words_});
      }
    }
  }

  // One-padding: outside words are 0, so a xor w is w there.
  void SubtractOutside(const TapRange& rows, const TapRange& columns, int32_t* sums) const {
    for (int64_t ky = 0; ky < p_.kernel_height; ++ky) {
      for (int64_t kx = 0; kx < p_.kernel_width; ++kx) {
        if (ky >= rows.first && ky < rows.last && kx >= columns.first && kx < columns.last) continue;
        const int64_t* bits = tap_bits_.data() + (ky * p_.kernel_width + kx) * p_.out_channels;
        for (int64_t o = 0; o < p_.out_channels; ++o) sums[o] -= static_cast<int32_t>(2 * bits[o]);
      }
    }
  }

  const BConv2dParams& p_;
  const uint32_t* filter_;
  const int64_t in_words_, tap_words_, out_words_;
  std::vector<int64_t> tap_bits_;
  std::vector<Run> runs_;
};

}  // namespace
}  // namespace bnnedge
