// The output transform of a strip's counts, AVX2, one row at a time. bnnedge/conv_kernel.h says what is stored. In an
// unnamed namespace: see portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "../portable/output_transform.h"
#include "../portable/tail.h"
#include "count_avx2.h"
#include "lanes_avx2.h"

namespace bnnedge {
namespace {

inline __m256i Load(const int32_t* values) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)); }

// The counts of 8 channels from `channel` on, which is a multiple of 8.
inline __m256i Counts8(const uint16_t* counts, int64_t channel) {
  return _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(counts + CountsOf(channel))));
}

inline __m256i Lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(std::min<int64_t>(count, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256 Scaled(__m256i v, const float* multiplier, const float* bias) {
  return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_loadu_ps(multiplier)), _mm256_loadu_ps(bias));
}

// The usual case, a whole block with half_base. Each value is passed to store(pixel, channel, value).
template <typename Store>
inline void ScaleHalved(const ConvStrip& strip, const uint16_t* counts, const Store& store) {
  const float *const multiplier = strip.half_multiplier, *const bias = strip.bias;
  const int32_t *const half_base = strip.half_base, *const offset = strip.base_offset;
  for (int64_t i = 0, pixels = strip.pixels; i < pixels; ++i, counts += kBlock) {
    const int32_t* const base = half_base + offset[i];
#pragma GCC unroll 8
    for (int64_t c = 0; c < kBlock; c += 8) {
      const __m256i v = _mm256_sub_epi32(Load(base + c), Counts8(counts, c));
      store(i, c, Scaled(v, multiplier + c, bias + c));
    }
  }
}

// All other cases, for one pixel.
void StoreFloats(const ConvStrip& strip, int64_t pixel, const uint16_t* counts, float* out) {
  const int32_t* const base = strip.base + strip.base_offset[pixel];
  const __m256i low = _mm256_set1_epi32(strip.clamp_low), high = _mm256_set1_epi32(strip.clamp_high);
  for (int64_t c = 0; c < strip.channels; c += 8) {
    const __m256i doubled = _mm256_slli_epi32(Counts8(counts, c), 1);
    const __m256i b = Load(base + c);
    __m256i v = strip.doubled < 0 ? _mm256_sub_epi32(b, doubled) : _mm256_add_epi32(b, doubled);
    if (strip.clamps) v = _mm256_min_epi32(_mm256_max_epi32(v, low), high);
    const __m256 y = Scaled(v, strip.multiplier + c, strip.bias + c);
    if (c + 8 <= strip.channels) {
      _mm256_storeu_ps(out + c, y);
    } else {
      _mm256_maskstore_ps(out + c, Lanes(strip.channels - c), y);
    }
  }
}

void StoreFloatRow(const ConvStrip& strip, const uint16_t* counts) {
  float* const out = static_cast<float*>(strip.output);
  const int64_t step = strip.out_pixel_step;
  if (strip.half_base != nullptr && strip.channels == kBlock) {
    ScaleHalved(strip, counts, [=](int64_t i, int64_t c, __m256 y) { _mm256_storeu_ps(out + i * step + c, y); });
    return;
  }
  for (int64_t i = 0; i < strip.pixels; ++i) StoreFloats(strip, i, counts + i * kBlock, out + i * step);
}

// Stores a row through the tail. `first` is the row's first pixel among those of the tail.
template <bool kAddsResidual, bool kWritesBits>
void StoreTailRow(const ConvStrip& strip, const uint16_t* counts, int64_t first) {
  const TailStrip& tail = *strip.tail;
  const int64_t step = tail.pixel_step, bits_step = tail.bits_step;
  const float* const residual = kAddsResidual ? tail.residual + first * step : nullptr;
  float* const output = tail.output + first * step;
  uint32_t* const bits = kWritesBits ? tail.bits + first * bits_step : nullptr;
  const float *const limit = tail.limit, low = tail.low, high = tail.high;
  uint32_t word = 0;
  ScaleHalved(strip, counts, [&](int64_t i, int64_t c, __m256 y) {
    const int64_t at = i * step;
    using Step = TailStep<kAddsResidual, false, kWritesBits>;
    const Step pixel{residual + at, nullptr, nullptr, limit, output + at, low, high};
    const int64_t bit = c % kWordBits;
    word = (bit == 0 ? 0 : word) | pixel.template Do<Avx2Lanes>(y, c) << bit;
    if (kWritesBits && (c + 8) % kWordBits == 0) bits[i * bits_step + c / kWordBits] = word;
  });
}

// Stores a row through the tail by way of the first-level cache. values_of(pixel, values) gives the values before the
// tail.
template <typename ValuesOf>
void StoreTailPixels(const ConvStrip& strip, int64_t first, const ValuesOf& values_of) {
  const TailStrip& tail = *strip.tail;
  alignas(32) float values[kBlock];
  TailStrip pixel = tail;
  pixel.values = values;
  pixel.pixels = 1;
  for (int64_t i = 0; i < strip.pixels; ++i) {
    values_of(i, values);
    pixel.output = tail.output + (first + i) * tail.pixel_step;
    if (tail.residual != nullptr) pixel.residual = tail.residual + (first + i) * tail.pixel_step;
    if (tail.bits != nullptr) pixel.bits = tail.bits + (first + i) * tail.bits_step;
    RunTail<Avx2Lanes>(pixel);
  }
}

void StoreTail(const ConvStrip& strip, const uint16_t* counts, int64_t first) {
  if (strip.half_base == nullptr) {
    StoreTailPixels(strip, first,
                    [&](int64_t i, float* values) { StoreFloats(strip, i, counts + i * kBlock, values); });
  } else if (strip.tail->residual != nullptr) {
    const auto store = strip.tail->bits != nullptr ? StoreTailRow<true, true> : StoreTailRow<true, false>;
    store(strip, counts, first);
  } else {
    const auto store = strip.tail->bits != nullptr ? StoreTailRow<false, true> : StoreTailRow<false, false>;
    store(strip, counts, first);
  }
}

void StoreBits(const int32_t* base, const uint16_t* counts, int64_t channels, uint32_t* out) {
  for (int64_t c = 0; c < channels; c += kWordBits) {
    const auto above = [=](int64_t i) { return _mm256_cmpgt_epi32(Counts8(counts, c + i), Load(base + c + i)); };
    *out++ = WordOf(above(0), above(8), above(16), above(24));
  }
}

// Stores a row in NCHW, 8 pixels x 8 channels at a time.
void StoreTransposed(const ConvStrip& strip, const uint16_t* counts) {
  constexpr int64_t kSide = 8;
  alignas(32) float rows[kSide][kBlock];
  float* out = static_cast<float*>(strip.output);
  for (int64_t i = 0; i < strip.pixels; i += kSide) {
    const int64_t pixels = std::min(kSide, strip.pixels - i);
    for (int64_t j = 0; j < pixels; ++j) StoreFloats(strip, i + j, counts + (i + j) * kBlock, rows[j]);
    for (int64_t c = 0; c < strip.channels; c += kSide) {
      __m256 r[8], t[8];
      for (int j = 0; j < 8; ++j) r[j] = j < pixels ? _mm256_load_ps(rows[j] + c) : _mm256_setzero_ps();
      for (int j = 0; j < 4; ++j) {
        t[2 * j] = _mm256_unpacklo_ps(r[2 * j], r[2 * j + 1]);
        t[2 * j + 1] = _mm256_unpackhi_ps(r[2 * j], r[2 * j + 1]);
      }
      for (int j = 0; j < 2; ++j) {
        r[4 * j] = _mm256_shuffle_ps(t[4 * j], t[4 * j + 2], 0x44);
        r[4 * j + 1] = _mm256_shuffle_ps(t[4 * j], t[4 * j + 2], 0xee);
        r[4 * j + 2] = _mm256_shuffle_ps(t[4 * j + 1], t[4 * j + 3], 0x44);
        r[4 * j + 3] = _mm256_shuffle_ps(t[4 * j + 1], t[4 * j + 3], 0xee);
      }
      for (int j = 0; j < 4; ++j) {
        t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
        t[4 + j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
      }
      for (int j = 0; j < std::min<int64_t>(kSide, strip.channels - c); ++j) {
        float* to = out + (c + j) * strip.out_channel_step + i;
        if (pixels == kSide) {
          _mm256_storeu_ps(to, t[j]);
        } else {
          _mm256_maskstore_ps(to, Lanes(pixels), t[j]);
        }
      }
    }
  }
}

void StoreRow(const ConvStrip& strip, const uint16_t* counts, int64_t first) {
  if (strip.kind == OutputKind::kFloat) {
    if (strip.tail != nullptr) {
      StoreTail(strip, counts, first);
    } else if (strip.out_channel_step != 1) {
      StoreTransposed(strip, counts);
    } else {
      StoreFloatRow(strip, counts);
    }
    return;
  }
  for (int64_t i = 0; i < strip.pixels; ++i, counts += kBlock) {
    if (strip.kind == OutputKind::kBits) {
      uint32_t* const out = static_cast<uint32_t*>(strip.output) + i * strip.out_pixel_step;
      StoreBits(strip.base + strip.base_offset[i], counts, strip.channels, out);
    } else {
      alignas(32) int32_t p[kBlock];
      for (int64_t c = 0; c < kBlock; c += 8) _mm256_store_si256(reinterpret_cast<__m256i*>(p + c), Counts8(counts, c));
      StorePixel(strip, i, p);
    }
  }
}

void StoreWideRow(const ConvStrip& strip, const int32_t* sums, int64_t first) {
  if (strip.tail != nullptr) {
    ConvStrip pixel = strip;
    pixel.out_pixel_step = 0;
    StoreTailPixels(strip, first, [&](int64_t i, float* values) {
      pixel.output = values;
      StorePixel(pixel, i, sums + i * kBlock);
    });
    return;
  }
  for (int64_t i = 0; i < strip.pixels; ++i) StorePixel(strip, i, sums + i * kBlock);
}

// The part of a strip that is its row y, as the functions above store it.
ConvStrip RowOf(const ConvStrip& strip, int64_t y) {
  const int64_t element = y * strip.pixels * strip.out_pixel_step;
  ConvStrip row = strip;
  row.base += strip.row_base[y];
  if (strip.half_base != nullptr) row.half_base += strip.row_base[y];
  row.output = static_cast<unsigned char*>(strip.output) + element * (strip.kind == OutputKind::kInt8 ? 1 : 4);
  return row;
}

}  // namespace
}  // namespace bnnedge
