// The tail of a residual block for a row of pixels, written once over "lanes", a handful of neighbouring channels that
// each instruction set supplies (hence the unnamed namespace, see epilogue.h). Lanes have kLanes, Load, Store, Plus,
// Times, Pick(a < b ? c : d) and Below, the bits of a < b.
#pragma once

#include <algorithm>

#include "bnnedge/conv_kernel.h"

namespace bnnedge {
namespace {

struct ScalarLanes {
  using Floats = float;
  static constexpr int kLanes = 1;
  static float Load(const float* from) { return *from; }
  static float Same(float value) { return value; }
  static void Store(float* to, float y) { *to = y; }
  static float Plus(float a, float b) { return a + b; }
  static float Times(float a, float b) { return a * b; }
  static float PickBelow(float a, float b, float c, float d) { return a < b ? c : d; }
  static uint32_t Below(float a, float b) { return a < b; }
};

// Lanes from channel c on; returns their bits.
template <typename L>
inline uint32_t FinishLanes(const TailStrip& strip, const float* values, const float* residual, float* output,
                            int64_t c) {
  typename L::Floats y = L::Load(values + c);
  if (strip.residual != nullptr) y = L::Plus(y, L::Load(residual + c));
  if (strip.slope != nullptr) y = L::PickBelow(y, L::Same(0.0f), L::Times(y, L::Load(strip.slope + c)), y);
  if (strip.offset != nullptr) y = L::Plus(y, L::Load(strip.offset + c));
  const typename L::Floats low = L::Same(strip.low), high = L::Same(strip.high);
  y = L::PickBelow(y, low, low, y);
  y = L::PickBelow(high, y, high, y);
  L::Store(output + c, y);
  return strip.bits == nullptr ? 0 : L::Below(y, L::Load(strip.limit + c));
}

template <typename L>
inline void FinishTail(const TailStrip& strip) {
  for (int64_t i = 0; i < strip.pixels; ++i) {
    const float* values = strip.values + i * strip.value_step;
    const float* residual = strip.residual == nullptr ? nullptr : strip.residual + i * strip.pixel_step;
    float* output = strip.output + i * strip.pixel_step;
    for (int64_t first = 0; first < strip.channels; first += kWordBits) {
      const int64_t count = std::min<int64_t>(kWordBits, strip.channels - first);
      uint32_t word = 0;
      int64_t b = 0;
      for (; b + L::kLanes <= count; b += L::kLanes) {
        word |= FinishLanes<L>(strip, values, residual, output, first + b) << b;
      }
      for (; b < count; ++b) word |= FinishLanes<ScalarLanes>(strip, values, residual, output, first + b) << b;
      if (strip.bits != nullptr) strip.bits[i * strip.bits_step + first / kWordBits] = word;
    }
  }
}

}  // namespace
}  // namespace bnnedge
