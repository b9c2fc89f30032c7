// The tail of a residual block for a row of pixels, written once for all instruction sets, hence the unnamed namespace:
// see output_transform.h. Each of them supplies a class of lanes, that is a vector of neighbouring channels, with
// kLanes, Load, Store, Plus, Times, Same (one value in all lanes), PickBelow (a < b ? c : d), Clip, and Below (the bits
// of a < b).
#pragma once

#include <algorithm>
#include <type_traits>

#include "bnnedge/conv_kernel.h"

#if defined(_MSC_VER)
#define BNNEDGE_NOINLINE __declspec(noinline)
#else
#define BNNEDGE_NOINLINE __attribute__((noinline))
#endif

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
  static float Clip(float y, float low, float high) {
    const float raised = y < low ? low : y;
    return high < raised ? high : raised;
  }
  static uint32_t Below(float a, float b) { return a < b; }
};

// The tail of one pixel's channels, or of some of them. Its fields are copies, because compilers must assume that a
// store of floats changes fields that are read through a pointer.
template <bool kAddsResidual, bool kActivates, bool kWritesBits>
struct TailStep {
  const float *residual, *slope, *offset, *limit;
  float *output, low, high;

  // Stores the lanes from channel c on and returns their bits.
  template <typename L>
  uint32_t Do(typename L::Floats y, int64_t c) const {
    if (kAddsResidual) y = L::Plus(y, L::Load(residual + c));
    if (kActivates) {
      if (slope != nullptr) y = L::PickBelow(y, L::Same(0.0f), L::Times(y, L::Load(slope + c)), y);
      if (offset != nullptr) y = L::Plus(y, L::Load(offset + c));
    }
    y = L::Clip(y, L::Same(low), L::Same(high));
    L::Store(output + c, y);
    return kWritesBits ? L::Below(y, L::Load(limit + c)) : 0;
  }
};

// The channels after the last whole word. This is not inlined, as it would take registers from the loop over words.
template <typename Step>
BNNEDGE_NOINLINE uint32_t RunLastChannels(const Step& step, const float* values, int64_t first, int64_t channels) {
  uint32_t word = 0;
  for (int64_t c = first; c < channels; ++c) word |= step.template Do<ScalarLanes>(values[c], c) << (c - first);
  return word;
}

template <typename L, bool kAddsResidual, bool kActivates, bool kWritesBits>
inline void RunTailAs(const TailStrip& strip) {
  const int64_t channels = strip.channels, whole = channels / kWordBits * kWordBits;
  const float* values = strip.values;
  uint32_t* bits = strip.bits;
  TailStep<kAddsResidual, kActivates, kWritesBits> step{strip.residual, strip.slope, strip.offset, strip.limit,
                                                        strip.output,   strip.low,   strip.high};
  for (int64_t i = strip.pixels; i > 0; --i) {
    for (int64_t first = 0; first < whole; first += kWordBits) {
      uint32_t word = 0;
      for (int b = 0; b < kWordBits; b += L::kLanes) {
        word |= step.template Do<L>(L::Load(values + first + b), first + b) << b;
      }
      if (kWritesBits) bits[first / kWordBits] = word;
    }
    if (whole < channels) {
      const uint32_t word = RunLastChannels(step, values, whole, channels);
      if (kWritesBits) bits[whole / kWordBits] = word;
    }
    values += strip.value_step;
    step.output += strip.pixel_step;
    if (kAddsResidual) step.residual += strip.pixel_step;
    if (kWritesBits) bits += strip.bits_step;
  }
}

template <typename L>
inline void RunTail(const TailStrip& strip) {
  const bool activates = strip.slope != nullptr || strip.offset != nullptr;
  const auto as = [&](auto residual, auto bits) {
    activates ? RunTailAs<L, decltype(residual)::value, true, decltype(bits)::value>(strip)
              : RunTailAs<L, decltype(residual)::value, false, decltype(bits)::value>(strip);
  };
  const std::true_type yes{};
  const std::false_type no{};
  if (strip.residual != nullptr) {
    strip.bits != nullptr ? as(yes, yes) : as(yes, no);
  } else {
    strip.bits != nullptr ? as(no, yes) : as(no, no);
  }
}

}  // namespace
}  // namespace bnnedge
