// Packing and unpacking with AVX-512: 16 comparisons an instruction.
#include <immintrin.h>

#include <algorithm>

#include "bnnedge/layout.h"
#include "bnnedge/pack_kernel.h"

namespace bnnedge {
namespace {

constexpr int64_t kLanes = 16;

__mmask16 Lanes(int64_t count) { return static_cast<__mmask16>((1u << std::min<int64_t>(count, kLanes)) - 1u); }

uint32_t Below(const float* values, __m512 limits, __mmask16 lanes) {
  return _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, values), limits, _CMP_LT_OQ);
}

// Bytes that are fetched ahead. The CPU's own prefetching stops at the end of every page, which here comes every few
// hundred cycles.
constexpr int64_t kAhead = 8192;

void PackNhwcFloat(const float* values, float limit, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m512 limits = _mm512_set1_ps(limit);
  if (channels % kWordBits == 0) {  // the pixels are one long row
    for (const uint32_t* end = words + pixels * channels / kWordBits; words < end; ++words, values += kWordBits) {
      _mm_prefetch(reinterpret_cast<const char*>(values) + kAhead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(values) + kAhead + 64, _MM_HINT_T0);
      *words = Below(values, limits, 0xffff) | Below(values + kLanes, limits, 0xffff) << kLanes;
    }
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      uint32_t word = Below(values, limits, Lanes(bits));
      if (bits > kLanes) word |= Below(values + kLanes, limits, Lanes(bits - kLanes)) << kLanes;
      *words++ = word;
      values += bits;
    }
  }
}

void PackNhwcFloatByChannel(const float* values, const float* limits, int64_t pixels, int64_t channels,
                            uint32_t* words) {
  for (int64_t i = 0; i < pixels; ++i, values += channels) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      uint32_t word = 0;
      for (int64_t b = 0; b < std::min<int64_t>(kWordBits, channels - c); b += kLanes) {
        const __mmask16 lanes = Lanes(channels - c - b);
        word |= Below(values + c + b, _mm512_maskz_loadu_ps(lanes, limits + c + b), lanes) << b;
      }
      *words++ = word;
    }
  }
}

void PackNhwcInt8(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m256i zero = _mm256_set1_epi8(static_cast<int8_t>(zero_point));
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      const __mmask32 lanes = static_cast<__mmask32>((uint64_t{1} << bits) - 1);
      *words++ = _mm256_mask_cmplt_epi8_mask(lanes, _mm256_maskz_loadu_epi8(lanes, values), zero);
      values += bits;
    }
  }
}

// Lanes are pixels: each channel sets its bit in the words of 16 (or 4 x 16) pixels.
template <int kVectors>
__attribute__((always_inline)) inline void PackNchwTile(const float* row, int64_t row_step, int64_t bits,
                                                        __mmask16 last, uint32_t* words, int64_t word_step) {
  __m512i word[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) word[v] = _mm512_setzero_si512();
  for (int64_t b = 0; b < bits; ++b, row += row_step) {
    const __m512i bit = _mm512_set1_epi32(static_cast<int32_t>(1u << b));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __mmask16 lanes = v + 1 == kVectors ? last : static_cast<__mmask16>(0xffff);
      const __m512 values = _mm512_maskz_loadu_ps(lanes, row + v * kLanes);
      const __mmask16 negative = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_LT_OQ);
      word[v] = _mm512_mask_or_epi32(word[v], negative, word[v], bit);
    }
  }
  alignas(64) uint32_t column[kVectors * kLanes];
  for (int v = 0; v < kVectors; ++v) _mm512_store_si512(column + v * kLanes, word[v]);
  const int64_t pixels = (kVectors - 1) * kLanes + __builtin_popcount(last);
  for (int64_t i = 0; i < pixels; ++i) words[i * word_step] = column[i];
}

void PackNchwFloat(const float* values, int64_t channels, int64_t pixels, uint32_t* words) {
  const int64_t pixel_words = WordsFor(channels);
  for (int64_t w = 0; w < pixel_words; ++w) {
    const int64_t bits = std::min<int64_t>(kWordBits, channels - w * kWordBits);
    const float* rows = values + w * kWordBits * pixels;
    int64_t i = 0;
    for (; i + 4 * kLanes <= pixels; i += 4 * kLanes) {
      PackNchwTile<4>(rows + i, pixels, bits, 0xffff, words + i * pixel_words + w, pixel_words);
    }
    for (; i < pixels; i += kLanes) {
      PackNchwTile<1>(rows + i, pixels, bits, Lanes(pixels - i), words + i * pixel_words + w, pixel_words);
    }
  }
}

void UnpackNhwcFloat(const uint32_t* words, int64_t pixels, int64_t channels, float* values) {
  const __m512 plus = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const uint32_t word = *words++;
      for (int64_t b = 0; b < std::min<int64_t>(kWordBits, channels - c); b += kLanes) {
        const __m512 signs = _mm512_mask_blend_ps(static_cast<__mmask16>(word >> b), plus, minus);
        _mm512_mask_storeu_ps(values + c + b, Lanes(channels - c - b), signs);
      }
    }
    values += channels;
  }
}

}  // namespace

constexpr PackKernel kPackAvx512 = [] {
  PackKernel kernel;
  kernel.pack_nhwc_float = PackNhwcFloat;
  kernel.pack_nhwc_float_by_channel = PackNhwcFloatByChannel;
  kernel.pack_nhwc_int8 = PackNhwcInt8;
  kernel.pack_nchw_float = PackNchwFloat;
  kernel.unpack_nhwc = UnpackNhwcFloat;
  return kernel;
}();

}  // namespace bnnedge
