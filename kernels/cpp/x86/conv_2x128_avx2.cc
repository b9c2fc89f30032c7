// 2 pixels x up to 128 output channels by table, for AVX2, which counts no bits itself.
//
// Derivation. A shuffle looks up one entry of a table of 16 in each byte; a byte is an output channel. For one nibble a
// of an input pixel, the table t[w] = popcount(a ^ w) turns the channels' weight nibbles into counts of 0 to 4. Two
// pixels share a look-up: t[w] = popcount(a ^ w) + 16 popcount(b ^ w). Three such bytes add up without overflow (at
// most 12 in either half). Of these sums x, two totals are kept modulo 256:
//   T = sum of x        H = sum of (x >> 4): the second pixel's counts
// After at most 20 sums H and the first pixel's counts L fit a byte, and L = T - 16 H modulo 256. A group is 16 sums,
// 48 nibbles, 6 words; then both are widened.
//
// The 256 possible tables take 4 KiB; a row of pixel pairs becomes a panel of table numbers, a | b << 4, one byte per
// nibble, made once for all blocks. K is cut into chunks whose weights stay in the first cache for all pairs of a row.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "../portable/epilogue.h"
#include "../portable/pack_scalar.h"
#include "../portable/tail.h"
#include "bnnedge/conv_kernel.h"

namespace bnnedge {
namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kLanes = 32;
constexpr int64_t kGroupWords = 6;
constexpr int64_t kWordNibbles = 8;
constexpr int64_t kSum = 3;  // nibbles added before the totals
constexpr int64_t kChunkBytes = 18 * 1024;

constexpr int Ones(int nibble) { return (nibble & 1) + (nibble >> 1 & 1) + (nibble >> 2 & 1) + (nibble >> 3); }

struct Tables {
  alignas(64) uint8_t entry[256][16];
  constexpr Tables() : entry() {
    for (int pair = 0; pair < 256; ++pair) {
      for (int w = 0; w < 16; ++w) {
        entry[pair][w] = static_cast<uint8_t>(Ones((pair & 15) ^ w) + 16 * Ones((pair >> 4) ^ w));
      }
    }
  }
};
constexpr Tables kTables;

int64_t Vectors(int64_t channels) { return (channels + kLanes - 1) / kLanes; }

// Nibbles of K, rounded up to whole sums: the rest is 0 on both sides and looks up a 0.
int64_t Nibbles(int64_t k_words) { return (k_words * kWordNibbles + kSum - 1) / kSum * kSum; }

int64_t PackedBytes(int64_t channels, int64_t k_words) { return Nibbles(k_words) * Vectors(channels) * kLanes; }

// The order of a word's nibbles, here and in the panel: 0 2 4 6 1 3 5 7.
// [nibbles][vectors][32], one nibble a byte; lanes beyond the last channel are 0.
void PackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  const int64_t lanes = Vectors(channels) * kLanes;
  uint8_t* to = static_cast<uint8_t*>(packed);
  std::memset(to, 0, static_cast<size_t>(PackedBytes(channels, k_words)));
  for (int64_t k = 0; k < k_words; ++k) {
    for (int64_t n = 0; n < kWordNibbles; ++n, to += lanes) {
      const int64_t nibble = n < 4 ? 2 * n : 2 * n - 7;
      for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<uint8_t>(filter[c * k_words + k] >> (4 * nibble) & 15);
    }
  }
}

// ---- Scratch: the panel, then the counts of a row ----

int64_t Pairs(int64_t pixels) { return (pixels + 1) / 2; }
int64_t PanelBytes(int64_t pixels, int64_t k_words) { return (Pairs(pixels) * Nibbles(k_words) + 63) / 64 * 64; }
int64_t ScratchBytes(int64_t pixels, int64_t k_words) {
  return PanelBytes(pixels, k_words) + 2 * Pairs(pixels) * kBlock * 4;
}

// 32 table numbers of 4 words are made at once; rows of the panel and runs have any length.
void MakePanelRow(const ConvStrip& strip, const uint32_t* first, const uint32_t* second, uint8_t* panel) {
  const __m256i low_nibbles = _mm256_set1_epi8(15);
  uint8_t* const end = panel + Nibbles(strip.k_words);
  for (int64_t r = 0; r < strip.run_count; ++r) {
    const uint32_t* a = first + strip.runs[r].offset;
    const uint32_t* b = second + strip.runs[r].offset;
    int64_t left = strip.runs[r].words;
    for (; left >= 4; left -= 4, a += 4, b += 4, panel += 4 * kWordNibbles) {
      const __m256i x = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
      const __m256i y = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
      // Bytes 0 to 3 of each half: even nibbles; bytes 4 to 7: odd ones.
      const __m256i x_nibbles = _mm256_and_si256(_mm256_or_si256(x, _mm256_slli_epi64(x, 28)), low_nibbles);
      const __m256i y_nibbles = _mm256_and_si256(_mm256_or_si256(y, _mm256_slli_epi64(y, 28)), low_nibbles);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel),
                          _mm256_or_si256(x_nibbles, _mm256_slli_epi64(y_nibbles, 4)));
    }
    for (; left > 0; --left, ++a, ++b, panel += kWordNibbles) {
      constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0fu;
      const uint64_t x = *a, y = *b;
      const uint64_t numbers = ((x | x << 28) & kLow) | ((y | y << 28) & kLow) << 4;
      std::memcpy(panel, &numbers, sizeof(numbers));
    }
  }
  std::fill(panel, end, uint8_t{0});
}

void MakePanel(const ConvStrip& strip, uint8_t* panel) {
  for (int64_t i = 0; i < strip.pixels; i += 2, panel += Nibbles(strip.k_words)) {
    const uint32_t* first = strip.input + i * strip.pixel_step;
    MakePanelRow(strip, first, i + 1 < strip.pixels ? first + strip.pixel_step : first, panel);
  }
}

// ---- Counting ----

// 16-bit counts of a pair: unpacking leaves channels 0-7 and 16-23 in the low half, the others in the high half.
template <int kVectors>
struct Counts {
  __m256i half[2][kVectors][2];  // [pixel]
};

template <int kVectors>
__attribute__((always_inline)) inline void Sums(const uint8_t* panel, const __m256i* weights, int64_t sums,
                                                Counts<kVectors>* counts) {
  const __m256i low_nibbles = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  __m256i total[kVectors], high[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) total[v] = high[v] = zero;
  for (int64_t s = 0; s < sums; ++s, panel += kSum, weights += kSum * kVectors) {
    __m256i x[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kSum; ++n) {
      const __m256i table = _mm256_broadcastsi128_si256(
          _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.entry[panel[n]])));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m256i entry = _mm256_shuffle_epi8(table, _mm256_load_si256(weights + n * kVectors + v));
        x[v] = n == 0 ? entry : _mm256_add_epi8(x[v], entry);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      total[v] = _mm256_add_epi8(total[v], x[v]);
      high[v] = _mm256_add_epi8(high[v], _mm256_and_si256(_mm256_srli_epi16(x[v], 4), low_nibbles));
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m256i times16 = _mm256_slli_epi16(_mm256_and_si256(high[v], low_nibbles), 4);
    const __m256i low = _mm256_sub_epi8(total[v], times16);
    __m256i* first = counts->half[0][v];
    __m256i* second = counts->half[1][v];
    first[0] = _mm256_add_epi16(first[0], _mm256_unpacklo_epi8(low, zero));
    first[1] = _mm256_add_epi16(first[1], _mm256_unpackhi_epi8(low, zero));
    second[0] = _mm256_add_epi16(second[0], _mm256_unpacklo_epi8(high[v], zero));
    second[1] = _mm256_add_epi16(second[1], _mm256_unpackhi_epi8(high[v], zero));
  }
}

inline void AddWidened(__m128i counts, bool fresh, int32_t* p) {
  __m256i* to = reinterpret_cast<__m256i*>(p);
  const __m256i wide = _mm256_cvtepu16_epi32(counts);
  _mm256_store_si256(to, fresh ? wide : _mm256_add_epi32(_mm256_load_si256(to), wide));
}

// p: [2 pixels][kBlock]; `fresh`: it holds nothing yet.
template <int kVectors>
void CountPair(const uint8_t* panel, const __m256i* weights, int64_t nibbles, bool fresh, int32_t* p) {
  constexpr int64_t kGroup = kGroupWords * kWordNibbles;
  Counts<kVectors> counts;
  for (auto& pixel : counts.half) {
    for (auto& vector : pixel) vector[0] = vector[1] = _mm256_setzero_si256();
  }
  for (; nibbles >= kGroup; nibbles -= kGroup, panel += kGroup, weights += kGroup * kVectors) {
    Sums<kVectors>(panel, weights, kGroup / kSum, &counts);  // a constant: no mispredicted end
  }
  if (nibbles > 0) Sums<kVectors>(panel, weights, nibbles / kSum, &counts);
  for (int pixel = 0; pixel < 2; ++pixel, p += kBlock) {
    for (int v = 0; v < kVectors; ++v) {
      const __m256i* half = counts.half[pixel][v];
      AddWidened(_mm256_castsi256_si128(half[0]), fresh, p + v * kLanes);
      AddWidened(_mm256_castsi256_si128(half[1]), fresh, p + v * kLanes + 8);
      AddWidened(_mm256_extracti128_si256(half[0], 1), fresh, p + v * kLanes + 16);
      AddWidened(_mm256_extracti128_si256(half[1], 1), fresh, p + v * kLanes + 24);
    }
  }
}

// Chunks are whole groups: kChunkBytes of weights, which also keeps 16-bit counts from overflowing.
template <int kVectors>
void CountRow(const ConvStrip& strip, const uint8_t* panel, int32_t* p) {
  constexpr int64_t kGroup = kGroupWords * kWordNibbles;
  constexpr int64_t kChunk = kChunkBytes / (kGroup * kVectors * kLanes) * kGroup;
  static_assert(kChunk * 4 < 65536, "16-bit counts");
  const int64_t nibbles = Nibbles(strip.k_words);
  const __m256i* weights = static_cast<const __m256i*>(strip.weights);
  for (int64_t first = 0; first < nibbles; first += kChunk) {
    const int64_t length = std::min(kChunk, nibbles - first);
    for (int64_t pair = 0; pair < Pairs(strip.pixels); ++pair) {
      CountPair<kVectors>(panel + pair * nibbles + first, weights + first * kVectors, length, first == 0,
                          p + 2 * pair * kBlock);
    }
  }
}

// ---- Storing ----

inline __m256i Load(const int32_t* values) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)); }

inline __m256i Lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(std::min<int64_t>(count, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256i Value8(const ConvStrip& strip, const int32_t* base, const int32_t* p) {
  const __m256i doubled = _mm256_slli_epi32(Load(p), 1);
  return strip.doubled < 0 ? _mm256_sub_epi32(Load(base), doubled) : _mm256_add_epi32(Load(base), doubled);
}

void StoreFloats(const ConvStrip& strip, const int32_t* base, const int32_t* p, float* out) {
  const __m256i low = _mm256_set1_epi32(strip.clamp_low), high = _mm256_set1_epi32(strip.clamp_high);
  for (int64_t c = 0; c < strip.channels; c += 8) {
    __m256i v = Value8(strip, base + c, p + c);
    if (strip.clamps) v = _mm256_min_epi32(_mm256_max_epi32(v, low), high);
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_loadu_ps(strip.multiplier + c));
    const __m256 y = _mm256_add_ps(product, _mm256_loadu_ps(strip.bias + c));
    if (c + 8 <= strip.channels) {
      _mm256_storeu_ps(out + c, y);
    } else {
      _mm256_maskstore_ps(out + c, Lanes(strip.channels - c), y);
    }
  }
}

void StoreBits(const ConvStrip& strip, const int32_t* base, const int32_t* p, uint32_t* out) {
  for (int64_t c = 0; c < strip.channels; c += kWordBits) {
    uint32_t word = 0;
    for (int64_t i = 0; i < kWordBits; i += 8) {
      const __m256i above = _mm256_cmpgt_epi32(Load(p + c + i), Load(base + c + i));
      word |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above))) << i;
    }
    *out++ = word;
  }
}

// NCHW: 8 pixels x 8 channels at a time.
void StoreTransposed(const ConvStrip& strip, const int32_t* p) {
  constexpr int64_t kSide = 8;
  alignas(32) float rows[kSide][kBlock];
  float* out = static_cast<float*>(strip.output);
  for (int64_t i = 0; i < strip.pixels; i += kSide) {
    const int64_t pixels = std::min(kSide, strip.pixels - i);
    for (int64_t j = 0; j < pixels; ++j) {
      StoreFloats(strip, strip.base + strip.base_offset[i + j], p + (i + j) * kBlock, rows[j]);
    }
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

void StoreRow(const ConvStrip& strip, const int32_t* p) {
  if (strip.kind == OutputKind::kFloat && strip.out_channel_step != 1) {
    StoreTransposed(strip, p);
    return;
  }
  for (int64_t i = 0; i < strip.pixels; ++i, p += kBlock) {
    const int32_t* base = strip.base + strip.base_offset[i];
    if (strip.kind == OutputKind::kFloat) {
      StoreFloats(strip, base, p, static_cast<float*>(strip.output) + i * strip.out_pixel_step);
    } else if (strip.kind == OutputKind::kBits) {
      StoreBits(strip, base, p, static_cast<uint32_t*>(strip.output) + i * strip.out_pixel_step);
    } else {
      StorePixel(strip, i, p);
    }
  }
}

void Run(const ConvStrip& strip) {
  uint8_t* panel = static_cast<uint8_t*>(strip.scratch);
  int32_t* p = reinterpret_cast<int32_t*>(panel + PanelBytes(strip.pixels, strip.k_words));
  if (strip.new_input) MakePanel(strip, panel);
  switch (Vectors(strip.channels)) {
    case 1:
      CountRow<1>(strip, panel, p);
      break;
    case 2:
      CountRow<2>(strip, panel, p);
      break;
    case 3:
      CountRow<3>(strip, panel, p);
      break;
    default:
      CountRow<4>(strip, panel, p);
      break;
  }
  StoreRow(strip, p);
}

// ---- Packing: comparisons, not sign bits, as -0.0 and NaN are +1 ----

inline uint32_t Below(const float* values, __m256 limit) {
  const __m256 below = _mm256_cmp_ps(_mm256_loadu_ps(values), limit, _CMP_LT_OQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(below));
}

void PackNhwcFloat(const float* values, float zero, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m256 limit = _mm256_set1_ps(zero);
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t left = channels;
    for (; left >= kWordBits; left -= kWordBits, values += kWordBits) {
      *words++ = Below(values, limit) | Below(values + 8, limit) << 8 | Below(values + 16, limit) << 16 |
                 Below(values + 24, limit) << 24;
    }
    if (left > 0) ScalarPackNhwcFloat(values, zero, 1, left, words++);
    values += left;
  }
}

void PackNhwcInt8(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m256i zero = _mm256_set1_epi8(static_cast<char>(zero_point));
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t left = channels;
    for (; left >= kWordBits; left -= kWordBits, values += kWordBits) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
      *words++ = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(zero, x)));
    }
    if (left > 0) ScalarPackNhwcInt8(values, zero_point, 1, left, words++);
    values += left;
  }
}

// ---- The yardstick: the look-ups and additions of one sum without loads ----

int64_t Peak(int64_t rounds) {
  constexpr int kChains = 2;
  const __m256i low_nibbles = _mm256_set1_epi8(15);
  __m256i table = low_nibbles, weights[kChains], total[kChains], high[kChains];
  for (int v = 0; v < kChains; ++v) {
    weights[v] = _mm256_set1_epi8(static_cast<char>(v));
    total[v] = high[v] = _mm256_setzero_si256();
  }
  for (int64_t r = 0; r < rounds; ++r) {
    for (int v = 0; v < kChains; ++v) {
      __m256i x[kSum];
      for (int n = 0; n < kSum; ++n) {
        __asm__ volatile("" : "+x"(table));  // else the shuffles would be one, and outside the loop
        x[n] = _mm256_shuffle_epi8(table, weights[v]);
      }
      const __m256i sum = _mm256_add_epi8(_mm256_add_epi8(x[0], x[1]), x[2]);
      total[v] = _mm256_add_epi8(total[v], sum);
      high[v] = _mm256_add_epi8(high[v], _mm256_and_si256(_mm256_srli_epi16(sum, 4), low_nibbles));
    }
  }
  for (int v = 0; v < kChains; ++v) __asm__ volatile("" : : "x"(total[v]), "x"(high[v]));
  return rounds * kChains * kSum * 4 * kLanes * 2;
}

// ---- The tail of a residual block ----

struct Avx2Lanes {
  using Floats = __m256;
  static constexpr int kLanes = 8;
  static __m256 Load(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 Same(float value) { return _mm256_set1_ps(value); }
  static void Store(float* to, __m256 y) { _mm256_storeu_ps(to, y); }
  static __m256 Plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 Times(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 PickBelow(__m256 a, __m256 b, __m256 c, __m256 d) {
    return _mm256_blendv_ps(d, c, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  // Both instructions return their second operand if one is NaN.
  static __m256 Clip(__m256 y, __m256 low, __m256 high) { return _mm256_min_ps(high, _mm256_max_ps(low, y)); }
  static uint32_t Below(__m256 a, __m256 b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
  }
};

}  // namespace

const ConvKernel kConvAvx2 = {
    "avx2",        kBlock,       StripOrder::kRowsOutside, PackedBytes,      PackWeights, ScratchBytes, Run,
    FinishTail<Avx2Lanes>, false,
    PackNhwcFloat, PackNhwcInt8, ScalarPackNchwFloat,      ScalarUnpackNhwc, Peak,
};

}  // namespace bnnedge
