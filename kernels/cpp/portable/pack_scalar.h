// Packing and unpacking in plain loops that compilers vectorise. They are written once and compiled for several
// instruction sets, hence the unnamed namespace: see output_transform.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bnnedge/layout.h"

namespace bnnedge {
namespace {

template <typename T>
void ScalarPackNhwc(const T* values, T limit, int64_t pixels, int64_t channels, uint32_t* words) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      uint32_t word = 0;
      for (int64_t b = 0; b < bits; ++b) word |= static_cast<uint32_t>(values[b] < limit) << b;
      *words++ = word;
      values += bits;
    }
  }
}

inline void ScalarPackNhwcFloat(const float* values, float limit, int64_t pixels, int64_t channels, uint32_t* words) {
  ScalarPackNhwc(values, limit, pixels, channels, words);
}

inline void ScalarPackNhwcFloatByChannel(const float* values, const float* limits, int64_t pixels, int64_t channels,
                                         uint32_t* words) {
  for (int64_t i = 0; i < pixels; ++i, values += channels) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      uint32_t word = 0;
      for (int64_t b = 0; b < bits; ++b) word |= static_cast<uint32_t>(values[c + b] < limits[c + b]) << b;
      *words++ = word;
    }
  }
}

inline void ScalarPackNhwcInt8(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels,
                               uint32_t* words) {
  ScalarPackNhwc(values, static_cast<int8_t>(zero_point), pixels, channels, words);
}

// 16 pixels x 32 channels at a time: the planes of the channels are read in order, and the words of the pixels stay in
// registers.
inline void ScalarPackNchwFloat(const float* values, int64_t channels, int64_t pixels, uint32_t* words) {
  constexpr int64_t kTile = 16;
  const int64_t pixel_words = WordsFor(channels);
  for (int64_t first = 0; first < pixels; first += kTile) {
    const int64_t tile = std::min(kTile, pixels - first);
    for (int64_t w = 0; w < pixel_words; ++w) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - w * kWordBits);
      const float* row = values + w * kWordBits * pixels + first;
      uint32_t word[kTile] = {};
      if (tile == kTile) {
        for (int64_t b = 0; b < bits; ++b, row += pixels) {
          for (int64_t i = 0; i < kTile; ++i) word[i] |= static_cast<uint32_t>(row[i] < 0.0f) << b;
        }
      } else {
        for (int64_t b = 0; b < bits; ++b, row += pixels) {
          for (int64_t i = 0; i < tile; ++i) word[i] |= static_cast<uint32_t>(row[i] < 0.0f) << b;
        }
      }
      for (int64_t i = 0; i < tile; ++i) words[(first + i) * pixel_words + w] = word[i];
    }
  }
}

inline void ScalarUnpackNhwc(const uint32_t* words, int64_t pixels, int64_t channels, float* values) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      const uint32_t word = *words++;
      for (int64_t b = 0; b < bits; ++b) *values++ = (word >> b) & 1u ? -1.0f : 1.0f;
    }
  }
}

}  // namespace
}  // namespace bnnedge
