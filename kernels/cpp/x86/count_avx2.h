// The popcounts of 2 pixels x up to 64 output channels by table, for AVX2, which has no instruction that counts bits.
//   1. A shuffle looks up one entry of a table of 16 in each byte; a byte is an output channel. For one nibble a of an
//      input pixel, the table t[w] = popcount(a ^ w) turns the channels' weight nibbles into counts of 0 to 4.
//   2. Two pixels share a look-up: t[w] = popcount(a ^ w) + 16 popcount(b ^ w). Three such bytes add up without
//      overflow (at most 12 in either half) to a sum x.
//   3. Two totals of the sums x are kept modulo 256:
//        T = sum of x        H = sum of (x >> 4): the second pixel's counts
//      For 63 nibbles at most, H and the first pixel's counts L fit a byte, and L = T - 16 H modulo 256.
//   4. There is no shift of bytes, and on many cores shifts take the pipes of shuffles. So H is made of averages:
//      y = x & 0xf0 is a multiple of 16 up to 192, so that the average of two is exact, that of two averages too, and
//      so on. The average of 16 sums, which are a group of 48 nibbles, is H itself. A group takes 127 operations; with
//      a shift, a mask and an addition for each sum it would take 144.
//
// The 256 possible tables take 4 KiB. The image that the kernel reads consists of places of tables (pair_avx2.h), 16
// bits a nibble, made once for all taps, output rows and blocks that read it. Loads are nearly as scarce as operations:
// a table serves both vectors of 64 channels, and one load gives four places. K is cut into chunks whose weights stay
// in the first-level cache for all pixels of a strip. In an unnamed namespace: see portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/rounding.h"

namespace bnnedge {
namespace {

constexpr int64_t kLanes = 32;
constexpr int64_t kMostVectors = 2;
constexpr int64_t kBlock = kMostVectors * kLanes;
constexpr int64_t kWordNibbles = 8;
constexpr int kSum = 3;  // nibbles of a sum x
constexpr int kGroupSums = 16;
constexpr int64_t kGroup = kGroupSums * kSum;
static_assert(4 * kGroup < 256, "the counts of a group fit a byte");
constexpr int64_t kChunk = 6 * kGroup;  // nibbles, whose weights take 18 KiB
constexpr int64_t kStripPixels = 64;
// With more words, counts of 16 bits could overflow.
constexpr int64_t kNarrowWords = 65535 / kWordBits;

constexpr int Ones(int nibble) { return (nibble & 1) + (nibble >> 1 & 1) + (nibble >> 2 & 1) + (nibble >> 3); }

struct Tables {
  alignas(64) uint8_t entry[256 * 16];
  constexpr Tables() : entry() {
    for (int pair = 0; pair < 256; ++pair) {
      for (int w = 0; w < 16; ++w) {
        entry[pair * 16 + w] = static_cast<uint8_t>(Ones((pair & 15) ^ w) + 16 * Ones((pair >> 4) ^ w));
      }
    }
  }
};
constexpr Tables kTables;

int64_t Vectors(int64_t channels) { return CeilDiv(channels, kLanes); }

int64_t PackedBytes(int64_t channels, int64_t k_words) { return k_words * kWordNibbles * Vectors(channels) * kLanes; }

// Packs to [nibbles][vectors][32], one nibble a byte; lanes behind the last channel are 0. The order of a word's
// nibbles, here and in the image, is 0 4 1 5 2 6 3 7.
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

// ---- Counting ----

#define BNNEDGE_INLINE __attribute__((always_inline)) inline

// Keeps a value in a register at this place, and so the order of the operations around it: compilers that move look-ups
// together run out of registers.
#define BNNEDGE_PIN(value) __asm__ volatile("" : "+x"(value))

// One byte a channel. Where there is one vector of channels, nothing reads `second`, and compilers drop its operations.
struct Bytes {
  __m256i first, second;
};

template <typename Function>
BNNEDGE_INLINE Bytes Each(const Function& function, const Bytes& a, const Bytes& b) {
  return {function(a.first, b.first), function(a.second, b.second)};
}

BNNEDGE_INLINE __m256i Add(__m256i a, __m256i b) { return _mm256_add_epi8(a, b); }
BNNEDGE_INLINE __m256i Average(__m256i a, __m256i b) { return _mm256_avg_epu8(a, b); }
// Adds b >> kShift, for bytes b whose low kShift bits are 0.
template <int kShift>
BNNEDGE_INLINE __m256i AddShifted(__m256i a, __m256i b) {
  return _mm256_add_epi8(a, _mm256_srli_epi16(b, kShift));
}

// The total T of step 3, and the mask that makes y of a sum x.
template <int kVectors>
struct Totals {
  __m256i second_halves = _mm256_set1_epi8(static_cast<char>(0xf0));
  Bytes total = {_mm256_setzero_si256(), _mm256_setzero_si256()};

  Totals() { BNNEDGE_PIN(second_halves); }  // otherwise Clang loads it each time

  // Adds a sum x and returns y.
  BNNEDGE_INLINE Bytes Take(const Bytes& x) {
    total = Each(Add, total, x);
    BNNEDGE_PIN(total.first);
    if (kVectors == 2) BNNEDGE_PIN(total.second);
    return {_mm256_and_si256(x.first, second_halves), _mm256_and_si256(x.second, second_halves)};
  }
};

inline __m256i TableAt(uint64_t place) {
  const uint8_t* entry = kTables.entry + place;
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entry)));
}

// Looks up one nibble of all channels. Weights are [nibbles][kVectors].
template <int kVectors>
BNNEDGE_INLINE Bytes LookUp(__m256i table, const __m256i* weights) {
  const __m256i first = _mm256_shuffle_epi8(table, _mm256_load_si256(weights));
  return {first, kVectors == 2 ? _mm256_shuffle_epi8(table, _mm256_load_si256(weights + 1)) : first};
}

// Looks up nibbles that are neighbours, in order.
template <int kVectors>
struct LookUps {
  const uint16_t* places;
  const __m256i* weights;
  uint64_t four = 0;

  template <int kNibble>
  BNNEDGE_INLINE Bytes At() {
    if (kNibble % 4 == 0) {
      std::memcpy(&four, places + kNibble, sizeof(four));
    } else {
      four >>= 16;
    }
    __asm__ volatile("" : "+r"(four));  // otherwise compilers copy it and shift the copy from the start
    const uint64_t place = kNibble % 4 == 3 ? four : four & 0xffff;
    return LookUp<kVectors>(TableAt(place), weights + kNibble * kVectors);
  }
};

// Adds kSums sums, from nibble kFirst on, to T and returns the average of their y.
template <int kSums, int kFirst, int kVectors, typename Source>
BNNEDGE_INLINE Bytes AddSums(Source* look_ups, Totals<kVectors>* to) {
  if constexpr (kSums == 1) {
    Bytes x = look_ups->template At<kFirst>();
    x = Each(Add, x, look_ups->template At<kFirst + 1>());
    return to->Take(Each(Add, x, look_ups->template At<kFirst + 2>()));
  } else {
    const Bytes half = AddSums<kSums / 2, kFirst>(look_ups, to);
    return Each(Average, half, AddSums<kSums / 2, kFirst + kSums / 2 * kSum>(look_ups, to));
  }
}

// Where the count of a channel is among the kBlock counts of a pixel, which have 16 bits. Unpacking leaves the channels
// of a vector in the order 0-7, 16-23, 8-15, 24-31.
constexpr int64_t CountsOf(int64_t channel) {
  const int64_t eights = channel / 8 % 4;
  return channel - channel % kLanes + (eights % 2 * 16 + eights / 2 * 8) + channel % 8;
}

inline void AddBytes(__m256i bytes, uint16_t* counts) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i* const to = reinterpret_cast<__m256i*>(counts);
  _mm256_store_si256(to, _mm256_add_epi16(_mm256_load_si256(to), _mm256_unpacklo_epi8(bytes, zero)));
  _mm256_store_si256(to + 1, _mm256_add_epi16(_mm256_load_si256(to + 1), _mm256_unpackhi_epi8(bytes, zero)));
}

// Adds the counts that T and H of one vector stand for.
inline void AddTotals(__m256i total, __m256i high, __m256i second_halves, uint16_t* counts) {
  const __m256i times16 = _mm256_and_si256(_mm256_slli_epi16(high, 4), second_halves);
  AddBytes(_mm256_sub_epi8(total, times16), counts);
  AddBytes(high, counts + kBlock);
}

// Adds the counts of both vectors. counts: [2 pixels][kBlock]
template <int kVectors>
BNNEDGE_INLINE void AddTotals(const Totals<kVectors>& totals, const Bytes& high, uint16_t* counts) {
  AddTotals(totals.total.first, high.first, totals.second_halves, counts);
  if (kVectors == 2) AddTotals(totals.total.second, high.second, totals.second_halves, counts + kLanes);
}

// Clears the counts of two pixels.
inline void Clear(uint16_t* counts) {
  __m256i zero = _mm256_setzero_si256();
  BNNEDGE_PIN(zero);  // otherwise compilers make a memset of it, which is slow for so few bytes
  for (int i = 0; i < 8; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(counts) + i, zero);
}

template <int kVectors>
BNNEDGE_INLINE void AddGroup(const uint16_t* places, const __m256i* weights, uint16_t* counts) {
  Totals<kVectors> totals;
  LookUps<kVectors> look_ups{places, weights};
  const Bytes high = AddSums<kGroupSums, 0>(&look_ups, &totals);
  AddTotals(totals, high, counts);
}

// Counts the nibbles of a run that fill no whole group.
template <int kVectors>
__attribute__((noinline)) void AddRest(const uint16_t* places, int64_t nibbles, const __m256i* weights,
                                       uint16_t* counts) {
  constexpr int kSums = 4, kLength = kSums * kSum;
  Totals<kVectors> totals;
  Bytes high = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (; nibbles >= kLength; nibbles -= kLength, places += kLength, weights += kLength * kVectors) {
    LookUps<kVectors> look_ups{places, weights};
    high = Each(AddShifted<2>, high, AddSums<kSums, 0>(&look_ups, &totals));
  }
  for (; nibbles > 0; --nibbles, ++places, weights += kVectors) {
    high = Each(AddShifted<4>, high, totals.Take(LookUp<kVectors>(TableAt(*places), weights)));
  }
  AddTotals(totals, high, counts);
}

// Where a chunk of K starts.
struct Place {
  const ConvRun* run;
  int64_t nibble;  // within the run
};

template <int kVectors>
__attribute__((noinline)) void CountPair(const uint32_t* window, Place at, const __m256i* weights, int64_t nibbles,
                                         bool fresh, uint16_t* counts) {
  if (fresh) Clear(counts);
  for (; nibbles > 0; ++at.run, at.nibble = 0) {
    const uint16_t* places = reinterpret_cast<const uint16_t*>(window + at.run->offset) + at.nibble;
    int64_t left = std::min(nibbles, at.run->words * kWordNibbles - at.nibble);
    nibbles -= left;
    for (; left >= kGroup; left -= kGroup, places += kGroup, weights += kGroup * kVectors) {
      AddGroup<kVectors>(places, weights, counts);
    }
    if (left > 0) AddRest<kVectors>(places, left, weights, counts);
    weights += left * kVectors;
  }
}

// ---- Scratch: the counts of a strip in 16 bits, and in 32 bits where these could overflow ----

int64_t CountedPixels(int64_t pixels) { return (pixels + 1) / 2 * 2; }
int64_t CountBytes(int64_t pixels) { return CountedPixels(pixels) * kBlock * int64_t{sizeof(uint16_t)}; }
int64_t ScratchBytes(int64_t pixels, int64_t k_words) { return CountBytes(pixels) * (k_words > kNarrowWords ? 3 : 1); }

// Counts a chunk of K. In a row with an odd number of pixels, the last one is paired with the next row's first; the
// last pixel of the strip may be alone.
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

// Counts a strip. The results are in `counts` or, where 16 bits could overflow, in `wide` in channel order.
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

}  // namespace
}  // namespace bnnedge
