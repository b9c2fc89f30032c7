// 2 pixels x up to 64 output channels by table, for AVX2, which counts no bits itself.
//
// Derivation. A shuffle looks up one entry of a table of 16 in each byte; a byte is an output channel. For one nibble a
// of an input pixel, the table t[w] = popcount(a ^ w) turns the channels' weight nibbles into counts of 0 to 4. Two
// pixels share a look-up: t[w] = popcount(a ^ w) + 16 popcount(b ^ w). Three such bytes add up without overflow (at
// most 12 in either half). Of these sums x, two totals are kept modulo 256:
//   T = sum of x        H = sum of (x >> 4): the second pixel's counts
// For 63 nibbles at most, H and the first pixel's counts L fit a byte, and L = T - 16 H modulo 256.
//
// Shuffles and shifts share two of the four vector pipes, averages do not, and a byte has no shift. So H takes four sums
// at once: with y = x & 0xf0, a multiple of 16 up to 192, the average of two is exact and 8 times the sum of their
// halves, that of two averages 4 times the sum of four. Its low bits are 0: shifted by 2 as 16 bits, no bit changes
// bytes. A quad is 12 nibbles and 33 operations, where a shift and a mask for each sum would make it 36.
//
// The 256 possible tables take 4 KiB. The image is made of their places, see PairWords: 16 bits a nibble, once for all
// taps, rows and blocks that read it. K is cut into chunks whose weights stay in the first cache for all pixels of a
// strip. 64 channels are 2 vectors: both totals, the averages, three tables and the sums on the way fit 16 registers.
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

constexpr int64_t kLanes = 32;
constexpr int64_t kMostVectors = 2;
constexpr int64_t kBlock = kMostVectors * kLanes;
constexpr int64_t kWordNibbles = 8;
constexpr int64_t kSum = 3;  // nibbles added before the totals
constexpr int64_t kQuad = 4 * kSum;
constexpr int64_t kGroup = 4 * kQuad;
constexpr int64_t kMostNibbles = 255 / 4;  // in totals of bytes
constexpr int64_t kChunk = 6 * kGroup;       // 18 KiB of weights
constexpr int64_t kStripPixels = 128;
// Above this, counts of 16 bits could overflow.
constexpr int64_t kNarrowWords = 65535 / kWordBits;

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

int64_t PackedBytes(int64_t channels, int64_t k_words) { return k_words * kWordNibbles * Vectors(channels) * kLanes; }

// The order of a word's nibbles, here and in the image: 0 4 1 5 2 6 3 7.
// [nibbles][vectors][32], one nibble a byte; lanes beyond the last channel are 0.
void PackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  const int64_t lanes = Vectors(channels) * kLanes;
  uint8_t* to = static_cast<uint8_t*>(packed);
  std::memset(to, 0, static_cast<size_t>(PackedBytes(channels, k_words)));
  for (int64_t k = 0; k < k_words; ++k) {
    for (int64_t n = 0; n < kWordNibbles; ++n, to += lanes) {
      const int64_t nibble = n / 2 + 4 * (n % 2);
      for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<uint8_t>(filter[c * k_words + k] >> (4 * nibble) & 15);
    }
  }
}

// ---- The image: of each nibble a of one pixel and b of its partner, the table's place in bytes, a << 4 | b << 8 ----

// 8 words at a time. 16-bit lanes shifted by 4 j hold nibbles j and 4 + j; a transposition of 32-bit lanes brings the
// four pairs of each word together.
void PairEightWords(const uint32_t* first, const uint32_t* second, __m128i* places) {
  const __m256i a_place = _mm256_set1_epi16(0x00f0), b_place = _mm256_set1_epi16(0x0f00);
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  const auto place = [&](__m256i its_a, __m256i its_b) {
    return _mm256_or_si256(_mm256_and_si256(its_a, a_place), _mm256_and_si256(its_b, b_place));
  };
  const __m256i pair0 = place(_mm256_slli_epi16(a, 4), _mm256_slli_epi16(b, 8));
  const __m256i pair1 = place(a, _mm256_slli_epi16(b, 4));
  const __m256i pair2 = place(_mm256_srli_epi16(a, 4), b);
  const __m256i pair3 = place(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 4));
  const __m256i even01 = _mm256_unpacklo_epi32(pair0, pair1), odd01 = _mm256_unpackhi_epi32(pair0, pair1);
  const __m256i even23 = _mm256_unpacklo_epi32(pair2, pair3), odd23 = _mm256_unpackhi_epi32(pair2, pair3);
  const __m256i words[4] = {_mm256_unpacklo_epi64(even01, even23), _mm256_unpackhi_epi64(even01, even23),
                            _mm256_unpacklo_epi64(odd01, odd23), _mm256_unpackhi_epi64(odd01, odd23)};
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(places + i, _mm256_castsi256_si128(words[i]));
    _mm_storeu_si128(places + 4 + i, _mm256_extracti128_si256(words[i], 1));
  }
}

void PairWords(const uint32_t* first, const uint32_t* second, int64_t count, uint32_t* pairs) {
  constexpr int64_t kStep = 8;
  for (; count >= kStep; count -= kStep, first += kStep, second += kStep, pairs += kStep * kPairWords) {
    PairEightWords(first, second, reinterpret_cast<__m128i*>(pairs));
  }
  if (count == 0) return;
  uint32_t rest[2][kStep] = {};
  __m128i places[kStep];
  std::copy(first, first + count, rest[0]);
  std::copy(second, second + count, rest[1]);
  PairEightWords(rest[0], rest[1], places);
  std::memcpy(pairs, places, static_cast<size_t>(count * kPairWords) * sizeof(*pairs));
}

// ---- Counting ----

// Keeps a value in its register, and so the order of what is around it: compilers that move the look-ups together run
// out of registers.
inline void Pin(__m256i* value) { __asm__ volatile("" : "+x"(*value)); }

template <int kVectors>
struct Totals {
  __m256i total[kVectors], high[kVectors];
  void Clear() {
    for (int v = 0; v < kVectors; ++v) total[v] = high[v] = _mm256_setzero_si256();
  }
};

inline __m256i TableAt(uint16_t place) {
  const uint8_t* entry = kTables.entry[0] + place;
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entry)));
}

// The sum of kNibbles look-ups for vector v. Weights are [nibbles][kVectors].
template <int kVectors, int kNibbles>
__attribute__((always_inline)) inline __m256i Sum(const __m256i* tables, const __m256i* weights, int v) {
  __m256i x = _mm256_shuffle_epi8(tables[0], _mm256_load_si256(weights + v));
#pragma GCC unroll 3
  for (int n = 1; n < kNibbles; ++n) {
    x = _mm256_add_epi8(x, _mm256_shuffle_epi8(tables[n], _mm256_load_si256(weights + n * kVectors + v)));
  }
  return x;
}

template <int kVectors>
__attribute__((always_inline)) inline void AddQuad(const uint16_t* places, const __m256i* weights,
                                                   Totals<kVectors>* to) {
  __m256i second_halves = _mm256_set1_epi8(static_cast<char>(0xf0));
  Pin(&second_halves);
  __m256i halves[kVectors], doubled[kVectors];  // of one sum; of two
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s, places += kSum, weights += kSum * kVectors) {
    __m256i tables[kSum];
#pragma GCC unroll 3
    for (int n = 0; n < kSum; ++n) {
      tables[n] = TableAt(places[n]);
      Pin(&tables[n]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m256i x = Sum<kVectors, kSum>(tables, weights, v);
      to->total[v] = _mm256_add_epi8(to->total[v], x);
      Pin(&to->total[v]);
      __m256i y = _mm256_and_si256(x, second_halves);
      if (s % 2 == 1) y = _mm256_avg_epu8(y, halves[v]);
      if (s == 3) {
        y = _mm256_srli_epi16(_mm256_avg_epu8(y, doubled[v]), 2);
        to->high[v] = _mm256_add_epi8(to->high[v], y);
        Pin(&to->high[v]);
      } else {
        Pin(&y);
        (s % 2 == 0 ? halves : doubled)[v] = y;
      }
    }
  }
}

// One sum of 1 or 3 nibbles.
template <int kVectors, int kNibbles>
__attribute__((always_inline)) inline void AddSum(const uint16_t* places, const __m256i* weights,
                                                  Totals<kVectors>* to) {
  __m256i tables[kNibbles];
  for (int n = 0; n < kNibbles; ++n) tables[n] = TableAt(places[n]);
  for (int v = 0; v < kVectors; ++v) {
    const __m256i x = Sum<kVectors, kNibbles>(tables, weights, v);
    const __m256i y = _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
    to->total[v] = _mm256_add_epi8(to->total[v], x);
    to->high[v] = _mm256_add_epi8(to->high[v], y);
  }
}

// Counts of a pixel are 16 bits, [kBlock], in the order in which unpacking leaves the channels of a vector: 0-7, 16-23,
// 8-15, 24-31.
inline int64_t CountsOf(int64_t channel) {
  const int64_t eights = channel / 8 % 4;
  return channel - channel % kLanes + (eights % 2 * 16 + eights / 2 * 8) + channel % 8;
}

template <bool kFresh>
inline void AddWidened(__m256i bytes, uint16_t* counts) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i* const to = reinterpret_cast<__m256i*>(counts);
  __m256i low = _mm256_unpacklo_epi8(bytes, zero), high = _mm256_unpackhi_epi8(bytes, zero);
  if (!kFresh) {
    low = _mm256_add_epi16(low, _mm256_load_si256(to));
    high = _mm256_add_epi16(high, _mm256_load_si256(to + 1));
  }
  _mm256_store_si256(to, low);
  _mm256_store_si256(to + 1, high);
}

template <bool kFresh, int kVectors>
__attribute__((always_inline)) inline void Widen(const Totals<kVectors>& totals, uint16_t* counts) {
  const __m256i second_halves = _mm256_set1_epi8(static_cast<char>(0xf0));
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v, counts += kLanes) {
    const __m256i times16 = _mm256_and_si256(_mm256_slli_epi16(totals.high[v], 4), second_halves);
    AddWidened<kFresh>(_mm256_sub_epi8(totals.total[v], times16), counts);
    AddWidened<kFresh>(totals.high[v], counts + kBlock);
  }
}

// Where a chunk of K starts.
struct Place {
  const ConvRun* run;
  int64_t nibble;  // in the run
};

// counts: [2 pixels][kBlock]; `fresh`: they hold nothing yet.
template <int kVectors>
void CountPair(const uint32_t* window, Place at, const __m256i* weights, int64_t nibbles, bool fresh,
               uint16_t* counts) {
  Totals<kVectors> totals;
  totals.Clear();
  int64_t held = 0;  // nibbles in the totals
  const auto empty = [&] {
    fresh ? Widen<true>(totals, counts) : Widen<false>(totals, counts);
    totals.Clear();
    fresh = false;
    held = 0;
  };
  for (; nibbles > 0; ++at.run, at.nibble = 0) {
    const uint16_t* places = reinterpret_cast<const uint16_t*>(window + at.run->offset) + at.nibble;
    int64_t left = std::min(nibbles, at.run->words * kWordNibbles - at.nibble);
    nibbles -= left;
    while (left > 0) {
      // Of whole groups the number of steps is a constant: no mispredicted end.
      const int64_t length = std::min(left, kGroup);
      if (held + length > kMostNibbles) empty();
      held += length;
      left -= length;
      const uint16_t* const end = places + length;
      if (length == kGroup) {
        for (int q = 0; q < 4; ++q, places += kQuad, weights += kQuad * kVectors) AddQuad<kVectors>(places, weights, &totals);
        continue;
      }
      for (; end - places >= kQuad; places += kQuad, weights += kQuad * kVectors) {
        AddQuad<kVectors>(places, weights, &totals);
      }
      for (; end - places >= kSum; places += kSum, weights += kSum * kVectors) {
        AddSum<kVectors, kSum>(places, weights, &totals);
      }
      for (; places < end; ++places, weights += kVectors) AddSum<kVectors, 1>(places, weights, &totals);
    }
  }
  empty();
}

// ---- Scratch: counts of a strip; and of those that need more, in 32 bits ----

int64_t CountedPixels(int64_t pixels) { return (pixels + 1) / 2 * 2; }
int64_t CountBytes(int64_t pixels) { return CountedPixels(pixels) * kBlock * int64_t{sizeof(uint16_t)}; }
int64_t ScratchBytes(int64_t pixels, int64_t k_words) { return CountBytes(pixels) * (k_words > kNarrowWords ? 3 : 1); }

// A row with an odd number of pixels ends in a pair with the first of the next row; the strip's last pixel may be alone.
template <int kVectors>
void CountChunk(const ConvStrip& strip, Place at, const __m256i* weights, int64_t nibbles, bool fresh,
                uint16_t* counts) {
  int64_t x = 0;
  const uint32_t* row = strip.input;
  for (int64_t y = 0; y < strip.rows; row += strip.row_step, x -= strip.pixels, ++y) {
    for (; x < strip.pixels; x += 2, counts += 2 * kBlock) {
      const bool wraps = x + 1 == strip.pixels && y + 1 < strip.rows;
      CountPair<kVectors>(row + (wraps ? strip.wrap : x * strip.pixel_step), at, weights, nibbles, fresh, counts);
    }
  }
}

void AddWide(const uint16_t* counts, int64_t pixels, bool fresh, int32_t* sums) {
  for (int64_t i = 0; i < pixels; ++i, counts += kBlock, sums += kBlock) {
    for (int64_t c = 0; c < kBlock; ++c) sums[c] = (fresh ? 0 : sums[c]) + counts[CountsOf(c)];
  }
}

// Leaves the counts in 16 bits or, where these could overflow, in 32 bits in channel order.
template <int kVectors>
void CountStrip(const ConvStrip& strip, uint16_t* counts, int32_t* wide) {
  const __m256i* weights = static_cast<const __m256i*>(strip.weights);
  Place at{strip.runs, 0};
  int64_t left = strip.k_words * kWordNibbles;
  for (bool fresh = true; left > 0; fresh = false) {
    const int64_t nibbles = std::min(left, kChunk);
    CountChunk<kVectors>(strip, at, weights, nibbles, fresh || wide != nullptr, counts);
    if (wide != nullptr) AddWide(counts, strip.rows * strip.pixels, fresh, wide);
    weights += nibbles * kVectors;
    left -= nibbles;
    at.nibble += nibbles;
    for (; left > 0 && at.nibble >= at.run->words * kWordNibbles; ++at.run) at.nibble -= at.run->words * kWordNibbles;
  }
}

// ---- Storing: a row of a strip ----

inline __m256i Load(const int32_t* values) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)); }

// Of 8 channels from `channel` on, a multiple of 8.
inline __m256i Counts8(const uint16_t* counts, int64_t channel) {
  return _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(counts + CountsOf(channel))));
}

inline __m256i Lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(std::min<int64_t>(count, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The float values of a pixel, 8 at a time.
struct PixelValues {
  const ConvStrip& strip;
  const int32_t *base, *half_base;
  const uint16_t* counts;

  PixelValues(const ConvStrip& its_strip, int64_t pixel, const uint16_t* its_counts)
      : strip(its_strip),
        base(its_strip.base + its_strip.base_offset[pixel]),
        half_base(its_strip.half_base == nullptr ? nullptr : its_strip.half_base + its_strip.base_offset[pixel]),
        counts(its_counts) {}

  __m256 Halved(int64_t c) const {
    const __m256i v = _mm256_sub_epi32(Load(half_base + c), Counts8(counts, c));
    return Scaled(v, strip.half_multiplier, c);
  }

  __m256 Whole(int64_t c) const {
    const __m256i doubled = _mm256_slli_epi32(Counts8(counts, c), 1);
    __m256i v = strip.doubled < 0 ? _mm256_sub_epi32(Load(base + c), doubled) : _mm256_add_epi32(Load(base + c), doubled);
    if (strip.clamps) {
      v = _mm256_max_epi32(v, _mm256_set1_epi32(strip.clamp_low));
      v = _mm256_min_epi32(v, _mm256_set1_epi32(strip.clamp_high));
    }
    return Scaled(v, strip.multiplier, c);
  }

 private:
  __m256 Scaled(__m256i v, const float* multiplier, int64_t c) const {
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_loadu_ps(multiplier + c));
    return _mm256_add_ps(product, _mm256_loadu_ps(strip.bias + c));
  }
};

void StoreFloats(const PixelValues& values, float* out) {
  const int64_t channels = values.strip.channels;
  if (values.half_base != nullptr && channels == kBlock) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < kBlock; c += 8) _mm256_storeu_ps(out + c, values.Halved(c));
    return;
  }
  for (int64_t c = 0; c < channels; c += 8) {
    const __m256 y = values.half_base != nullptr ? values.Halved(c) : values.Whole(c);
    if (c + 8 <= channels) {
      _mm256_storeu_ps(out + c, y);
    } else {
      _mm256_maskstore_ps(out + c, Lanes(channels - c), y);
    }
  }
}

void StoreBits(const int32_t* base, const uint16_t* counts, int64_t channels, uint32_t* out) {
  for (int64_t c = 0; c < channels; c += kWordBits) {
    uint32_t word = 0;
    for (int64_t i = 0; i < kWordBits; i += 8) {
      const __m256i above = _mm256_cmpgt_epi32(Counts8(counts, c + i), Load(base + c + i));
      word |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above))) << i;
    }
    *out++ = word;
  }
}

// NCHW: 8 pixels x 8 channels at a time.
void StoreTransposed(const ConvStrip& strip, const uint16_t* counts) {
  constexpr int64_t kSide = 8;
  alignas(32) float rows[kSide][kBlock];
  float* out = static_cast<float*>(strip.output);
  for (int64_t i = 0; i < strip.pixels; i += kSide) {
    const int64_t pixels = std::min(kSide, strip.pixels - i);
    for (int64_t j = 0; j < pixels; ++j) StoreFloats(PixelValues(strip, i + j, counts + (i + j) * kBlock), rows[j]);
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

void StoreRow(const ConvStrip& strip, const uint16_t* counts) {
  if (strip.kind == OutputKind::kFloat && strip.out_channel_step != 1) {
    StoreTransposed(strip, counts);
    return;
  }
  for (int64_t i = 0; i < strip.pixels; ++i, counts += kBlock) {
    if (strip.kind == OutputKind::kFloat) {
      StoreFloats(PixelValues(strip, i, counts), static_cast<float*>(strip.output) + i * strip.out_pixel_step);
    } else if (strip.kind == OutputKind::kBits) {
      uint32_t* const out = static_cast<uint32_t*>(strip.output) + i * strip.out_pixel_step;
      StoreBits(strip.base + strip.base_offset[i], counts, strip.channels, out);
    } else {
      alignas(32) int32_t p[kBlock];
      for (int64_t c = 0; c < kBlock; c += 8) _mm256_store_si256(reinterpret_cast<__m256i*>(p + c), Counts8(counts, c));
      StorePixel(strip, i, p);
    }
  }
}

// To be stored.
ConvStrip RowOf(const ConvStrip& strip, int64_t y) {
  const int64_t element = y * strip.pixels * strip.out_pixel_step;
  ConvStrip row = strip;
  row.base += strip.row_base[y];
  if (strip.half_base != nullptr) row.half_base += strip.row_base[y];
  row.output = static_cast<unsigned char*>(strip.output) + element * (strip.kind == OutputKind::kInt8 ? 1 : 4);
  return row;
}

void Run(const ConvStrip& strip) {
  const int64_t pixels = strip.rows * strip.pixels;
  uint16_t* const counts = static_cast<uint16_t*>(strip.scratch);
  int32_t* wide = nullptr;
  if (strip.k_words > kNarrowWords) wide = reinterpret_cast<int32_t*>(counts + CountedPixels(pixels) * kBlock);
  strip.channels <= kLanes ? CountStrip<1>(strip, counts, wide) : CountStrip<2>(strip, counts, wide);
  for (int64_t y = 0; y < strip.rows; ++y) {
    const int64_t first = y * strip.pixels;
    const ConvStrip row = RowOf(strip, y);
    if (wide == nullptr) {
      StoreRow(row, counts + first * kBlock);
    } else {
      for (int64_t i = 0; i < strip.pixels; ++i) StorePixel(row, i, wide + (first + i) * kBlock);
    }
  }
}

// ---- Packing: comparisons, not sign bits, as -0.0 and NaN are +1 ----

// All bits of a 32-bit lane: value below limit.
inline __m256i Below(const float* values, __m256 limit) {
  return _mm256_castps_si256(_mm256_cmp_ps(limit, _mm256_loadu_ps(values), _CMP_GT_OQ));
}

// 32 signs. Packing with saturation keeps lanes of all bits or none, and takes the halves of two vectors in turn.
inline uint32_t BelowWord(const float* values, __m256 limit) {
  const __m256i low = _mm256_packs_epi32(Below(values, limit), Below(values + 8, limit));
  const __m256i high = _mm256_packs_epi32(Below(values + 16, limit), Below(values + 24, limit));
  const __m256i fours = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), fours);
  return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
}

void PackNhwcFloat(const float* values, float zero, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m256 limit = _mm256_set1_ps(zero);
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t left = channels;
    for (; left >= kWordBits; left -= kWordBits, values += kWordBits) *words++ = BelowWord(values, limit);
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

// ---- The yardstick: the look-ups and additions of a quad without loads ----

int64_t Peak(int64_t rounds) {
  constexpr int kChains = 2;
  const __m256i second_halves = _mm256_set1_epi8(static_cast<char>(0xf0));
  __m256i table = second_halves, weights[kChains], total[kChains], high[kChains];
  for (int v = 0; v < kChains; ++v) {
    weights[v] = _mm256_set1_epi8(static_cast<char>(v));
    total[v] = high[v] = _mm256_setzero_si256();
  }
  const auto sum = [&](int v) {
    __m256i x[kSum];
    for (int n = 0; n < kSum; ++n) {
      Pin(&table);  // else the shuffles would be one
      x[n] = _mm256_shuffle_epi8(table, weights[v]);
    }
    const __m256i all = _mm256_add_epi8(_mm256_add_epi8(x[0], x[1]), x[2]);
    total[v] = _mm256_add_epi8(total[v], all);
    return _mm256_and_si256(all, second_halves);
  };
  for (int64_t r = 0; r < rounds; ++r) {
    for (int v = 0; v < kChains; ++v) {
      __m256i first = sum(v);
      first = _mm256_avg_epu8(first, sum(v));
      __m256i second = sum(v);
      second = _mm256_avg_epu8(second, sum(v));
      high[v] = _mm256_add_epi8(high[v], _mm256_srli_epi16(_mm256_avg_epu8(first, second), 2));
    }
  }
  for (int v = 0; v < kChains; ++v) __asm__ volatile("" : : "x"(total[v]), "x"(high[v]));
  return rounds * kChains * kQuad * 4 * kLanes * 2;
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
    "avx2",        kBlock,       StripOrder::kBlocksOutside, PackedBytes,      PackWeights, ScratchBytes, Run,
    FinishTail<Avx2Lanes>, false,
    PackNhwcFloat, PackNhwcInt8, ScalarPackNchwFloat,      ScalarUnpackNhwc, Peak,
    nullptr,       PairWords,    kStripPixels,
};

}  // namespace bnnedge
