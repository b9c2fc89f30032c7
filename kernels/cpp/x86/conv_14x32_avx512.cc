// Up to 14 pixels x 32 output channels, AVX-512 with VPOPCNTDQ. Lanes are output channels: a step broadcasts one input
// word per pixel, and each 32-bit lane counts its own channel's 32 products. So there are no horizontal sums and no
// tail in K, the counts are int32 ready to convert, and one comparison gives 16 output bits in packing order.
//
// The counts run down from where they start, so that what is compared or scaled at the end is there without an addition
// (kBits: b - p, of which the sign is the bit; kFloat and kInt8: half_base - p; else -p).
//
// Registers at 14 x 32: 28 counts, 2 filter vectors, 2 temporaries = 32.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../portable/tail.h"
#include "bnnedge/conv_kernel.h"

namespace bnnedge {
namespace {

constexpr int64_t kBlock = 32;
constexpr int64_t kLanes = 16;

int64_t Vectors(int64_t channels) { return channels > kLanes ? 2 : 1; }

int64_t PackedBytes(int64_t channels, int64_t k_words) { return k_words * Vectors(channels) * kLanes * 4; }

// [k_words][vectors][16]; lanes beyond the last channel are 0.
void PackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  const int64_t lanes = Vectors(channels) * kLanes;
  uint32_t* to = static_cast<uint32_t*>(packed);
  for (int64_t k = 0; k < k_words; ++k) {
    for (int64_t c = 0; c < lanes; ++c) *to++ = c < channels ? filter[c * k_words + k] : 0;
  }
}

// ---- Counting ----

// A pixel's address is one of every third pixel's pointers plus 0, 1 or 2 steps, which x86 addresses without further
// registers.
template <int kPixels>
struct Rows {
  const char* third[(kPixels + 2) / 3];
};

template <int kPixels, int kVectors>
__attribute__((always_inline)) inline void Step(const Rows<kPixels>& rows, int64_t offset, int64_t step,
                                                const __m512i* filter, __m512i (&count)[kPixels][kVectors]) {
  __m512i w[kVectors];
#pragma GCC unroll 2
  for (int z = 0; z < kVectors; ++z) w[z] = _mm512_load_si512(filter + z);
#pragma GCC unroll 14
  for (int i = 0; i < kPixels; ++i) {
    int32_t word;
    std::memcpy(&word, rows.third[i / 3] + offset + i % 3 * step, sizeof(word));
    const __m512i input = _mm512_set1_epi32(word);
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      count[i][z] = _mm512_sub_epi32(count[i][z], _mm512_popcnt_epi32(_mm512_xor_si512(w[z], input)));
    }
  }
}

template <int kPixels, int kVectors>
__attribute__((always_inline)) inline void Count(const ConvStrip& strip, int64_t first_pixel,
                                                 __m512i (&count)[kPixels][kVectors]) {
  const int32_t* start = strip.kind == OutputKind::kBits ? strip.base : strip.half_base;
#pragma GCC unroll 14
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      count[i][z] = start == nullptr ? _mm512_setzero_si512()
                                     : _mm512_loadu_si512(start + strip.base_offset[first_pixel + i] + z * kLanes);
    }
  }
  const int64_t step = strip.pixel_step * 4;
  const char* pixel = reinterpret_cast<const char*>(strip.input) + first_pixel * step;
  const __m512i* filter = static_cast<const __m512i*>(strip.weights);
  for (int64_t r = 0; r < strip.run_count; ++r) {
    Rows<kPixels> rows;
#pragma GCC unroll 5
    for (int i = 0; i < (kPixels + 2) / 3; ++i) rows.third[i] = pixel + strip.runs[r].offset * 4 + 3 * i * step;
    const int64_t bytes = strip.runs[r].words * 4;
    for (int64_t offset = 0; offset < bytes; offset += 4, filter += kVectors) {
      Step<kPixels, kVectors>(rows, offset, step, filter, count);
    }
  }
}

// ---- Storing ----

struct Masks {
  __mmask16 lanes[2];  // channels that exist
};

// v; the counts are -p.
inline __m512i Value(bool adds, const int32_t* base, __m512i count) {
  const __m512i doubled = _mm512_slli_epi32(count, 1);
  const __m512i b = _mm512_loadu_si512(base);
  return adds ? _mm512_add_epi32(b, doubled) : _mm512_sub_epi32(b, doubled);
}

// Of 16 channels. `kHalves`: the counts started at half_base. Plain locals, because a store could change what a struct
// holds.
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

// Halves away from zero: the remainder of the truncation is exact, adding a half first would not be.
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

// 16 x 16 floats, rows of `row_step` floats, to columns of `column_step`; `rows` of the columns' values are stored.
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
  // t[4 i + j], 128-bit part q: column 4 q + j of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x44), high01 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xee);
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

struct Avx512Lanes {
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static __m512 Load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 Same(float value) { return _mm512_set1_ps(value); }
  static void Store(float* to, __m512 y) { _mm512_storeu_ps(to, y); }
  static __m512 Plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 Times(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 PickBelow(__m512 a, __m512 b, __m512 c, __m512 d) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), d, c);
  }
  // Both instructions return their second operand if one is NaN.
  static __m512 Clip(__m512 y, __m512 low, __m512 high) { return _mm512_min_ps(high, _mm512_max_ps(low, y)); }
  static uint32_t Below(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
};

template <bool kAddsResidual, bool kWritesBits, bool kHalves, int kPixels>
__attribute__((always_inline)) inline void StoreTailAs(const ConvStrip& strip, int64_t first_pixel,
                                                       const __m512i (&count)[kPixels][2]) {
  const TailStrip& tail = *strip.tail;
  const int64_t pixel_step = tail.pixel_step, bits_step = tail.bits_step, first = first_pixel * pixel_step;
  const int32_t* offset = strip.base_offset + first_pixel;
  uint32_t* bits = tail.bits + (kWritesBits ? first_pixel * bits_step : 0);
  TailStep<kAddsResidual, false, kWritesBits> step{tail.residual, nullptr, nullptr, tail.limit, tail.output + first,
                                                   tail.low,      tail.high};
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
      _mm512_mask_storeu_epi32(out + z * kLanes, masks.lanes[z], Value(adds, base + offset[i] + z * kLanes, count[i][z]));
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

// ---- Tiles ----

template <int kPixels, int kVectors>
__attribute__((noinline)) void Tile(const ConvStrip& strip, int64_t first_pixel, const Masks& masks) {
  __m512i count[kPixels][kVectors];
  Count<kPixels, kVectors>(strip, first_pixel, count);
  Store<kPixels, kVectors>(strip, first_pixel, masks, count);
}

// The usual row lengths divide into equal tiles of 14, 8 or 7 pixels; the rest takes what fits.
int64_t TilePixels(int64_t left) {
  for (const int64_t pixels : {14, 8, 7}) {
    if (left % pixels == 0) return pixels;
  }
  for (const int64_t pixels : {14, 8, 4, 2}) {
    if (left >= pixels) return pixels;
  }
  return 1;
}

template <int kVectors>
void RunTiles(const ConvStrip& strip, const Masks& masks) {
  for (int64_t pixel = 0; pixel < strip.pixels;) {
    const int64_t tile = TilePixels(strip.pixels - pixel);
    switch (tile) {
      case 14:
        Tile<14, kVectors>(strip, pixel, masks);
        break;
      case 8:
        Tile<8, kVectors>(strip, pixel, masks);
        break;
      case 7:
        Tile<7, kVectors>(strip, pixel, masks);
        break;
      case 4:
        Tile<4, kVectors>(strip, pixel, masks);
        break;
      case 2:
        Tile<2, kVectors>(strip, pixel, masks);
        break;
      default:
        Tile<1, kVectors>(strip, pixel, masks);
        break;
    }
    pixel += tile;
  }
}

void Run(const ConvStrip& strip) {
  const uint32_t channels = static_cast<uint32_t>((uint64_t{1} << strip.channels) - 1);
  const Masks masks = {{static_cast<__mmask16>(channels), static_cast<__mmask16>(channels >> kLanes)}};
  if (Vectors(strip.channels) == 2) {
    RunTiles<2>(strip, masks);
  } else {
    RunTiles<1>(strip, masks);
  }
}

// ---- Packing ----

__mmask16 Lanes(int64_t count) { return static_cast<__mmask16>((1u << std::min<int64_t>(count, kLanes)) - 1u); }

// A comparison, not the sign bit: -0.0 and NaN are +1.
uint32_t Below(const float* values, __m512 limit, __mmask16 lanes) {
  return _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, values), limit, _CMP_LT_OQ);
}

void PackNhwcFloat(const float* values, float zero, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m512 limit = _mm512_set1_ps(zero);
  if (channels % kWordBits == 0) {  // pixels have no edges then
    for (const uint32_t* end = words + pixels * channels / kWordBits; words < end; ++words, values += kWordBits) {
      *words = Below(values, limit, 0xffff) | Below(values + kLanes, limit, 0xffff) << kLanes;
    }
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      uint32_t word = Below(values, limit, Lanes(bits));
      if (bits > kLanes) word |= Below(values + kLanes, limit, Lanes(bits - kLanes)) << kLanes;
      *words++ = word;
      values += bits;
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

// Lanes are pixels: each channel ors its bit into the words of 16 (or 4 x 16) pixels.
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

// ---- The yardstick: xor, popcount, add without loads ----

int64_t Peak(int64_t rounds) {
  constexpr int kChains = 12;
  __m512i w = _mm512_set1_epi32(0x5a5a5a5a);
  __m512i input[kChains], count[kChains];
  for (int i = 0; i < kChains; ++i) {
    input[i] = _mm512_set1_epi32(i);
    count[i] = _mm512_setzero_si512();
  }
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+v"(w));  // else the xor would leave the loop
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      count[i] = _mm512_add_epi32(count[i], _mm512_popcnt_epi32(_mm512_xor_si512(w, input[i])));
    }
  }
  for (int i = 0; i < kChains; ++i) __asm__ volatile("" : : "v"(count[i]));
  return rounds * kChains * 512;
}

}  // namespace

const ConvKernel kConvAvx512 = {
    "avx512",      kBlock,       StripOrder::kBlocksOutside, PackedBytes,     PackWeights, nullptr, Run,
    FinishTail<Avx512Lanes>, true,
    PackNhwcFloat, PackNhwcInt8, PackNchwFloat,              UnpackNhwcFloat, Peak,
};

}  // namespace bnnedge
