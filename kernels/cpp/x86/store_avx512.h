// The output transform of a tile's counts, AVX-512; bnnedge/conv_kernel.h says what is stored. The counts are start -
// p, where start is base for kBits, half_base where there is one, and 0 in all other cases. In an unnamed namespace:
// see portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../portable/tail.h"
#include "bnnedge/conv_kernel.h"
#include "lanes_avx512.h"

namespace bnnedge {
namespace {

constexpr int64_t kLanes = 16;

struct Masks {
  __mmask16 lanes[2];  // the channels that exist
};

// The accumulator v; the counts are -p.
inline __m512i Value(bool adds, const int32_t* base, __m512i count) {
  const __m512i doubled = _mm512_slli_epi32(count, 1);
  const __m512i b = _mm512_loadu_si512(base);
  return adds ? _mm512_add_epi32(b, doubled) : _mm512_sub_epi32(b, doubled);
}

// Scales the accumulators of 16 channels. `kHalves`: the counts started at half_base. The fields are copies, because
// compilers must assume that a store changes fields that are read through a pointer.
template <bool kHalves>
struct Scale {
  __m512 multiplier, bias;
  __m512i low, high;
  const int32_t* base;
  bool adds, clamps;

  Scale(const ConvStrip& strip, int64_t first_channel)
      : multiplier(_mm512_loadu_ps((kHalves ? strip.half_multiplier : strip.multiplier) + first_channel)),
        bias(_mm512_loadu_ps(strip.bias + first_channel)),
        low(_mm512_set1_epi32(strip.clamp_low)),
        high(_mm512_set1_epi32(strip.clamp_high)),
        base(strip.base + first_channel),
        adds(strip.doubled < 0),
        clamps(strip.clamps) {}

  __m512 Apply(int32_t base_offset, __m512i count) const {
    if (!kHalves) {
      count = Value(adds, base + base_offset, count);
      if (clamps) count = _mm512_min_epi32(_mm512_max_epi32(count, low), high);
    }
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(count), multiplier), bias);
  }
};

// Rounds halves away from zero. The remainder of the truncation is exact; adding a half first would not be.
inline __m128i ToInt8(__m512 y) {
  y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
  const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(y, whole);
  const __mmask16 up = _mm512_cmp_ps_mask(rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ);
  const __mmask16 down = _mm512_cmp_ps_mask(rest, _mm512_set1_ps(-0.5f), _CMP_LE_OQ);
  __m512i q = _mm512_cvttps_epi32(whole);
  q = _mm512_mask_add_epi32(q, up, q, _mm512_set1_epi32(1));
  q = _mm512_mask_sub_epi32(q, down, q, _mm512_set1_epi32(1));
  return _mm512_cvtsepi32_epi8(q);
}

// Transposes 16 x 16 floats from rows of `row_step` floats to columns of `column_step`, and stores the first `rows`
// values of the first `columns` columns.
inline void StoreTransposed(const float* from, int64_t row_step, float* to, int64_t column_step, int rows,
                            int columns) {
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) t[i] = _mm512_load_ps(from + i * row_step);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[2 * i] = _mm512_unpacklo_ps(t[2 * i], t[2 * i + 1]);
    r[2 * i + 1] = _mm512_unpackhi_ps(t[2 * i], t[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(r[4 * i]), b = _mm512_castps_pd(r[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(r[4 * i + 2]), d = _mm512_castps_pd(r[4 * i + 3]);
    t[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    t[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    t[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    t[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // 128-bit part q of t[4 i + j] holds column 4 q + j of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x44),
                 high01 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xee);
    r[j] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    r[4 + j] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    r[8 + j] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    r[12 + j] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
  const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1u);
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c) {
    if (c < columns) _mm512_mask_storeu_ps(to + c * column_step, mask, r[c]);
  }
}

// ---- The tail of a residual block ----

template <bool kAddsResidual, bool kWritesBits, bool kHalves, int kPixels>
__attribute__((always_inline)) inline void StoreTailAs(const ConvStrip& strip, int64_t first_pixel,
                                                       const __m512i (&count)[kPixels][2]) {
  const TailStrip& tail = *strip.tail;
  const int64_t pixel_step = tail.pixel_step, bits_step = tail.bits_step, first = first_pixel * pixel_step;
  const int32_t* offset = strip.base_offset + first_pixel;
  uint32_t* bits = tail.bits + (kWritesBits ? first_pixel * bits_step : 0);
  TailStep<kAddsResidual, false, kWritesBits> step{tail.residual,       nullptr,  nullptr,  tail.limit,
                                                   tail.output + first, tail.low, tail.high};
  if (kAddsResidual) step.residual += first;
  const Scale<kHalves> scale[2] = {{strip, 0}, {strip, kLanes}};
#pragma GCC unroll 14
  for (int i = 0; i < kPixels; ++i) {
    uint32_t word = 0;
#pragma GCC unroll 2
    for (int z = 0; z < 2; ++z) {
      const __m512 y = scale[z].Apply(offset[i], count[i][z]);
      word |= step.template Do<Avx512Lanes>(y, z * kLanes) << (z * kLanes);
    }
    if (kWritesBits) bits[i * bits_step] = word;
    step.output += pixel_step;
    if (kAddsResidual) step.residual += pixel_step;
  }
}

template <bool kHalves, int kPixels>
__attribute__((always_inline)) inline void StoreTail(const ConvStrip& strip, int64_t first_pixel,
                                                     const __m512i (&count)[kPixels][2]) {
  if (strip.tail->residual != nullptr) {
    if (strip.tail->bits != nullptr) {
      StoreTailAs<true, true, kHalves>(strip, first_pixel, count);
    } else {
      StoreTailAs<true, false, kHalves>(strip, first_pixel, count);
    }
  } else {
    if (strip.tail->bits != nullptr) {
      StoreTailAs<false, true, kHalves>(strip, first_pixel, count);
    } else {
      StoreTailAs<false, false, kHalves>(strip, first_pixel, count);
    }
  }
}

template <bool kHalves, int kPixels, int kVectors>
__attribute__((always_inline)) inline void StoreNchw(const ConvStrip& strip, int64_t first_pixel,
                                                     const __m512i (&count)[kPixels][kVectors]) {
  alignas(64) float rows[16][kVectors * kLanes];
  const int32_t* offset = strip.base_offset + first_pixel;
#pragma GCC unroll 2
  for (int z = 0; z < kVectors; ++z) {
    const Scale<kHalves> scale(strip, z * kLanes);
#pragma GCC unroll 14
    for (int i = 0; i < kPixels; ++i) {
      _mm512_store_ps(&rows[i][z * kLanes], scale.Apply(offset[i], count[i][z]));
    }
  }
  for (int i = kPixels; i < 16; ++i) std::memset(rows[i], 0, sizeof(rows[i]));
  float* out = static_cast<float*>(strip.output) + first_pixel;
  for (int z = 0; z < kVectors; ++z) {
    StoreTransposed(&rows[0][z * kLanes], kVectors * kLanes, out + z * kLanes * strip.out_channel_step,
                    strip.out_channel_step, kPixels,
                    static_cast<int>(std::min<int64_t>(kLanes, strip.channels - z * kLanes)));
  }
}

template <bool kHalves, int kPixels, int kVectors>
__attribute__((always_inline)) inline void StoreFloat(const ConvStrip& strip, int64_t first_pixel, const Masks& masks,
                                                      const __m512i (&count)[kPixels][kVectors]) {
  if (strip.out_channel_step != 1) {
    StoreNchw<kHalves>(strip, first_pixel, count);
    return;
  }
  if constexpr (kVectors == 2) {
    if (strip.tail != nullptr) {
      StoreTail<kHalves>(strip, first_pixel, count);
      return;
    }
  }
  const int32_t* offset = strip.base_offset + first_pixel;
  const int64_t step = strip.out_pixel_step;
  float* out = static_cast<float*>(strip.output) + first_pixel * step;
#pragma GCC unroll 2
  for (int z = 0; z < kVectors; ++z) {
    const Scale<kHalves> scale(strip, z * kLanes);
    const __mmask16 lanes = masks.lanes[z];
#pragma GCC unroll 14
    for (int i = 0; i < kPixels; ++i) {
      _mm512_mask_storeu_ps(out + i * step + z * kLanes, lanes, scale.Apply(offset[i], count[i][z]));
    }
  }
}

template <bool kHalves, int kPixels, int kVectors>
__attribute__((always_inline)) inline void StoreInt8(const ConvStrip& strip, int64_t first_pixel, const Masks& masks,
                                                     const __m512i (&count)[kPixels][kVectors]) {
  const int32_t* offset = strip.base_offset + first_pixel;
  const int64_t step = strip.out_pixel_step;
  int8_t* out = static_cast<int8_t*>(strip.output) + first_pixel * step;
#pragma GCC unroll 2
  for (int z = 0; z < kVectors; ++z) {
    const Scale<kHalves> scale(strip, z * kLanes);
    const __mmask16 lanes = masks.lanes[z];
#pragma GCC unroll 14
    for (int i = 0; i < kPixels; ++i) {
      _mm_mask_storeu_epi8(out + i * step + z * kLanes, lanes, ToInt8(scale.Apply(offset[i], count[i][z])));
    }
  }
}

template <int kPixels, int kVectors>
__attribute__((always_inline)) inline void StoreSums(const ConvStrip& strip, int64_t first_pixel, const Masks& masks,
                                                     const __m512i (&count)[kPixels][kVectors]) {
  const int32_t* offset = strip.base_offset + first_pixel;
  const int32_t* base = strip.base;
  const bool adds = strip.doubled < 0;
  int32_t* out = static_cast<int32_t*>(strip.output) + first_pixel * strip.out_pixel_step;
#pragma GCC unroll 14
  for (int i = 0; i < kPixels; ++i, out += strip.out_pixel_step) {
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      _mm512_mask_storeu_epi32(out + z * kLanes, masks.lanes[z],
                               Value(adds, base + offset[i] + z * kLanes, count[i][z]));
    }
  }
}

template <int kPixels, int kVectors>
__attribute__((always_inline)) inline void StoreBits(const ConvStrip& strip, int64_t first_pixel,
                                                     const __m512i (&count)[kPixels][kVectors]) {
  uint32_t* out = static_cast<uint32_t*>(strip.output) + first_pixel * strip.out_pixel_step;
#pragma GCC unroll 14
  for (int i = 0; i < kPixels; ++i, out += strip.out_pixel_step) {
    uint32_t word = 0;
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      word |= static_cast<uint32_t>(_mm512_movepi32_mask(count[i][z])) << (z * kLanes);
    }
    *out = word;
  }
}

template <int kPixels, int kVectors>
__attribute__((always_inline)) inline void Store(const ConvStrip& strip, int64_t first_pixel, const Masks& masks,
                                                 const __m512i (&count)[kPixels][kVectors]) {
  const bool halves = strip.half_base != nullptr;
  switch (strip.kind) {
    case OutputKind::kSums:
      StoreSums(strip, first_pixel, masks, count);
      break;
    case OutputKind::kFloat:
      halves ? StoreFloat<true>(strip, first_pixel, masks, count) : StoreFloat<false>(strip, first_pixel, masks, count);
      break;
    case OutputKind::kInt8:
      halves ? StoreInt8<true>(strip, first_pixel, masks, count) : StoreInt8<false>(strip, first_pixel, masks, count);
      break;
    case OutputKind::kBits:
      StoreBits(strip, first_pixel, count);
      break;
  }
}

}  // namespace
}  // namespace bnnedge
