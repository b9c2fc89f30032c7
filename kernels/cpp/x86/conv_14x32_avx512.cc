// Up to 14 pixels x 32 output channels, AVX-512 with VPOPCNTDQ. Lanes are output channels: a step broadcasts one input
// word per pixel, and each 32-bit lane counts its own channel's 32 products. So there are no horizontal sums and no
// remainder of K, the counts are int32 and ready to be converted, and one comparison gives 16 output bits in packing
// order.
//
// The counts start at a value and run down, so that the value to be compared or scaled at the end needs no addition. It
// is b - p for kBits, whose sign is the output bit, half_base - p for kFloat and kInt8 where there is a half_base, and
// -p in all other cases.
//
// Registers at 14 x 32: 28 counts, 2 filter vectors, 2 temporaries = 32. A tile of chained words (bnnedge/chain.h) is 8
// pixels x 16 channels, computed twice: 8 counts and 8 last words, 2 filter vectors, 2 temporaries, and the 8 counts of
// the first half.
#include <immintrin.h>

#include <cstring>

#include "../cpu_features.h"
#include "bnnedge/conv_kernel.h"
#include "chain_avx512.h"
#include "store_avx512.h"

namespace bnnedge {
namespace {

constexpr int64_t kBlock = 32;

int64_t Vectors(int64_t channels) { return channels > kLanes ? 2 : 1; }

int64_t PackedBytes(int64_t channels, int64_t k_words) { return k_words * Vectors(channels) * kLanes * 4; }

// Packs to [k_words][vectors][16]; lanes behind the last channel are 0.
void PackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  const int64_t lanes = Vectors(channels) * kLanes;
  uint32_t* to = static_cast<uint32_t*>(packed);
  for (int64_t k = 0; k < k_words; ++k) {
    for (int64_t c = 0; c < lanes; ++c) *to++ = c < channels ? filter[c * k_words + k] : 0;
  }
}

// ---- Counting ----

// The values that the counts start from; nullptr: 0.
inline const int32_t* Start(const ConvStrip& strip) {
  return strip.kind == OutputKind::kBits ? strip.base : strip.half_base;
}

// Pointers to every third pixel. The address of a pixel is one of them plus 0, 1 or 2 steps, which x86 computes without
// further registers.
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
  const int32_t* start = Start(strip);
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

// ---- Counting chained words ----

// The carry of a full adder, the majority of s0, x1 and x2, from s0, s1 = s0 ^ x1 and s2 = s0 ^ x1 ^ x2.
inline __m512i Carry(__m512i s0, __m512i s1, __m512i s2) { return _mm512_ternarylogic_epi32(s0, s1, s2, 0x74); }

inline __m512i Broadcast(const char* word) {
  int32_t value;
  std::memcpy(&value, word, sizeof(value));
  return _mm512_set1_epi32(value);
}

// Counts one vector of channels after the other, as a pixel has two values to keep for each: its count and its last s.
template <int kPixels, int kVectors>
__attribute__((always_inline)) inline void CountChained(const ConvStrip& strip, int64_t first_pixel,
                                                        __m512i (&count)[kPixels][kVectors]) {
  const int64_t step = strip.pixel_step * 4;
  const char* pixel = reinterpret_cast<const char*>(strip.input) + first_pixel * step;
  Rows<kPixels> rows;
#pragma GCC unroll 3
  for (int i = 0; i < (kPixels + 2) / 3; ++i) rows.third[i] = pixel + 3 * i * step;
  const int64_t bytes = strip.k_words * 4;
  const int32_t* start = Start(strip);
  const int32_t* ones = strip.ones + first_pixel * strip.ones_step;
#pragma GCC unroll 2
  for (int z = 0; z < kVectors; ++z) {
    __m512i carries[kPixels], s[kPixels];
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      carries[i] = _mm512_setzero_si512();
      s[i] = Broadcast(rows.third[i / 3] + i % 3 * step - 4);
    }
    const __m512i* filter = static_cast<const __m512i*>(strip.weights) + z;
    for (int64_t offset = 0; offset < bytes; offset += 8, filter += 2 * kVectors) {
      const __m512i w1 = _mm512_load_si512(filter), w2 = _mm512_load_si512(filter + kVectors);
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) {
        const char* words = rows.third[i / 3] + i % 3 * step + offset;
        const __m512i s1 = _mm512_xor_si512(w1, Broadcast(words)), s2 = _mm512_xor_si512(w2, Broadcast(words + 4));
        carries[i] = _mm512_sub_epi32(carries[i], _mm512_popcnt_epi32(Carry(s[i], s1, s2)));
        s[i] = s2;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      __m512i rest = _mm512_sub_epi32(_mm512_set1_epi32(ones[i * strip.ones_step]), _mm512_popcnt_epi32(s[i]));
      if (start != nullptr) {
        rest = _mm512_add_epi32(rest, _mm512_loadu_si512(start + strip.base_offset[first_pixel + i] + z * kLanes));
      }
      count[i][z] = _mm512_add_epi32(_mm512_add_epi32(carries[i], carries[i]), rest);
    }
  }
}

// ---- Tiles ----

template <int kPixels, int kVectors, bool kChained>
__attribute__((noinline)) void Tile(const ConvStrip& strip, int64_t first_pixel, const Masks& masks) {
  __m512i count[kPixels][kVectors];
  if (kChained) {
    CountChained<kPixels, kVectors>(strip, first_pixel, count);
  } else {
    Count<kPixels, kVectors>(strip, first_pixel, count);
  }
  Store<kPixels, kVectors>(strip, first_pixel, masks, count);
}

// Runs one tile and returns its number of pixels. The usual row lengths divide into equal tiles of 14, 8 or 7 pixels;
// other rows take the largest tile that fits. Chained words leave no registers for 14.
template <int kVectors, bool kChained>
int64_t RunTile(const ConvStrip& strip, int64_t pixel, const Masks& masks) {
  const int64_t left = strip.pixels - pixel;
  if constexpr (!kChained) {
    if (left % 14 == 0) return Tile<14, kVectors, kChained>(strip, pixel, masks), 14;
  }
  if (left % 8 == 0) return Tile<8, kVectors, kChained>(strip, pixel, masks), 8;
  if (left % 7 == 0) return Tile<7, kVectors, kChained>(strip, pixel, masks), 7;
  if constexpr (!kChained) {
    if (left >= 14) return Tile<14, kVectors, kChained>(strip, pixel, masks), 14;
  }
  if (left >= 8) return Tile<8, kVectors, kChained>(strip, pixel, masks), 8;
  if (left >= 4) return Tile<4, kVectors, kChained>(strip, pixel, masks), 4;
  if (left >= 2) return Tile<2, kVectors, kChained>(strip, pixel, masks), 2;
  return Tile<1, kVectors, kChained>(strip, pixel, masks), 1;
}

template <int kVectors, bool kChained>
void RunTiles(const ConvStrip& strip, const Masks& masks) {
  for (int64_t pixel = 0; pixel < strip.pixels;) pixel += RunTile<kVectors, kChained>(strip, pixel, masks);
}

void Run(const ConvStrip& strip) {
  const uint32_t channels = static_cast<uint32_t>((uint64_t{1} << strip.channels) - 1);
  const Masks masks = {{static_cast<__mmask16>(channels), static_cast<__mmask16>(channels >> kLanes)}};
  if (Vectors(strip.channels) == 2) {
    strip.ones == nullptr ? RunTiles<2, false>(strip, masks) : RunTiles<2, true>(strip, masks);
  } else {
    strip.ones == nullptr ? RunTiles<1, false>(strip, masks) : RunTiles<1, true>(strip, masks);
  }
}

ChainRowFunction Chain(int64_t kernel_height, int64_t k_words) {
  if (k_words % 2 != 0 || k_words < ShortestChain()) return nullptr;
  return kernel_height == 3 ? ChainWords<3> : kernel_height == 1 ? ChainWords<1> : nullptr;
}

// ---- The peak: xor, popcount and addition without loads ----

#ifndef BNNEDGE_PIN  // tests/emulated has its own
// Keeps a value in a register at this place.
#define BNNEDGE_PIN(value) __asm__ volatile("" : "+v"(value))
#endif

int64_t Peak(int64_t rounds) {
  constexpr int kChains = 12;
  __m512i w = _mm512_set1_epi32(0x5a5a5a5a);
  __m512i input[kChains], count[kChains];
  for (int i = 0; i < kChains; ++i) {
    input[i] = _mm512_set1_epi32(i);
    count[i] = _mm512_setzero_si512();
  }
  for (int64_t r = 0; r < rounds; ++r) {
    BNNEDGE_PIN(w);  // otherwise the xor would leave the loop
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      count[i] = _mm512_add_epi32(count[i], _mm512_popcnt_epi32(_mm512_xor_si512(w, input[i])));
    }
  }
  for (int i = 0; i < kChains; ++i) BNNEDGE_PIN(count[i]);
  return rounds * kChains * 512;
}

}  // namespace

constexpr ConvKernel kConvAvx512 = [] {
  ConvKernel kernel;
  kernel.name = "avx512";
  kernel.block = kBlock;
  kernel.order = StripOrder::kBlocksOutside;
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.run = Run;
  kernel.run_tail = RunTail<Avx512Lanes>;
  kernel.fuses_tail = true;
  kernel.peak = Peak;
  kernel.chain = Chain;
  return kernel;
}();

}  // namespace bnnedge
