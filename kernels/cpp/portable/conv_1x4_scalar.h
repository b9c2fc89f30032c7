// The scalar popcount convolution, 64 bits of one pixel x 4 output channels at a time. It is written once and compiled
// for several instruction sets, hence the unnamed namespace: see output_transform.h.
#pragma once

#include <algorithm>
#include <cstring>

#include "bnnedge/conv_kernel.h"
#include "output_transform.h"

namespace bnnedge {
namespace {

constexpr int64_t kScalarBlock = 32;
constexpr int64_t kScalarTile = 4;

// Where the CPU has no such instruction, GCC's builtin is a call and a table, which makes the convolution 2.5 times
// slower than this.
inline int32_t Popcount64(uint64_t bits) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return __builtin_popcountll(bits);
#else
  bits -= (bits >> 1) & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + ((bits >> 2) & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int32_t>((bits * 0x0101010101010101u) >> 56);
#endif
}

inline uint64_t Load64(const uint32_t* words) {
  uint64_t bits;
  std::memcpy(&bits, words, sizeof(bits));
  return bits;
}

// Packed weights are the filter itself: [channels][k_words].
inline int64_t ScalarPackedBytes(int64_t channels, int64_t k_words) { return channels * k_words * 4; }

inline void ScalarPackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  std::memcpy(packed, filter, static_cast<size_t>(ScalarPackedBytes(channels, k_words)));
}

// Counts kScalarTile channels. Behind the block's last channel, that one is repeated, and the popcounts are not stored.
inline void ScalarTile(const ConvStrip& strip, const uint32_t* pixel, int64_t first_channel, int32_t* p) {
  const uint32_t* filter[kScalarTile];
  int32_t total[kScalarTile] = {};
  for (int64_t c = 0; c < kScalarTile; ++c) {
    const int64_t channel = std::min(first_channel + c, strip.channels - 1);
    filter[c] = static_cast<const uint32_t*>(strip.weights) + channel * strip.k_words;
  }
  int64_t k = 0;
  for (int64_t r = 0; r < strip.run_count; ++r) {
    const uint32_t* input = pixel + strip.runs[r].offset;
    const int64_t words = strip.runs[r].words;
    int64_t i = 0;
    for (; i + 2 <= words; i += 2, k += 2) {
      const uint64_t bits = Load64(input + i);
      for (int64_t c = 0; c < kScalarTile; ++c) total[c] += Popcount64(bits ^ Load64(filter[c] + k));
    }
    if (i < words) {
      for (int64_t c = 0; c < kScalarTile; ++c) total[c] += Popcount64(input[i] ^ filter[c][k]);
      ++k;
    }
  }
  for (int64_t c = 0; c < kScalarTile; ++c) p[first_channel + c] = total[c];
}

inline void ScalarRun(const ConvStrip& strip) {
  int32_t p[kScalarBlock];
  for (int64_t i = 0; i < strip.pixels; ++i) {
    for (int64_t c = 0; c < strip.channels; c += kScalarTile) {
      ScalarTile(strip, strip.input + i * strip.pixel_step, c, p);
    }
    StorePixel(strip, i, p);
  }
}

}  // namespace
}  // namespace bnnedge
