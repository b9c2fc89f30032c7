// The output transform of one pixel's popcounts, one value at a time; bnnedge/conv_kernel.h says what is stored.
//
// The unnamed namespace is on purpose, here and in other headers of kernels: each file that includes one gets its own
// copy of the code, so that a copy that was compiled for a newer CPU is never linked into another file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "bnnedge/conv_kernel.h"

namespace bnnedge {
namespace {

// Computes modulo 2^32: 2 p may leave the range of int32, the sum does not.
inline int32_t Value(int32_t base, int32_t doubled, int32_t p) {
  return static_cast<int32_t>(static_cast<uint32_t>(base) + static_cast<uint32_t>(doubled) * static_cast<uint32_t>(p));
}

inline float Scaled(const ConvStrip& strip, int32_t value, int64_t channel) {
  if (strip.clamps) value = std::min(std::max(value, strip.clamp_low), strip.clamp_high);
  return static_cast<float>(value) * strip.multiplier[channel] + strip.bias[channel];
}

// std::round rounds halves away from zero.
inline int8_t ToInt8(float value) {
  return static_cast<int8_t>(std::min(std::max(std::round(value), -128.0f), 127.0f));
}

// Stores a pixel. `p` holds the popcounts of the strip's channels there.
inline void StorePixel(const ConvStrip& strip, int64_t pixel, const int32_t* p) {
  const int32_t* base = strip.base + strip.base_offset[pixel];
  const int64_t first = pixel * strip.out_pixel_step;
  switch (strip.kind) {
    case OutputKind::kSums: {
      int32_t* out = static_cast<int32_t*>(strip.output) + first;
      for (int64_t c = 0; c < strip.channels; ++c) out[c] = Value(base[c], strip.doubled, p[c]);
      break;
    }
    case OutputKind::kFloat: {
      float* out = static_cast<float*>(strip.output) + first;
      for (int64_t c = 0; c < strip.channels; ++c) {
        out[c * strip.out_channel_step] = Scaled(strip, Value(base[c], strip.doubled, p[c]), c);
      }
      break;
    }
    case OutputKind::kInt8: {
      int8_t* out = static_cast<int8_t*>(strip.output) + first;
      for (int64_t c = 0; c < strip.channels; ++c) {
        out[c] = ToInt8(Scaled(strip, Value(base[c], strip.doubled, p[c]), c));
      }
      break;
    }
    case OutputKind::kBits: {
      uint32_t* out = static_cast<uint32_t*>(strip.output) + first;
      for (int64_t c = 0; c < strip.channels; c += kWordBits) {
        const int64_t bits = std::min<int64_t>(kWordBits, strip.channels - c);
        uint32_t word = 0;
        for (int64_t i = 0; i < bits; ++i) word |= static_cast<uint32_t>(p[c + i] > base[c + i]) << i;
        out[c / kWordBits] = word;
      }
      break;
    }
  }
}

}  // namespace
}  // namespace bnnedge
