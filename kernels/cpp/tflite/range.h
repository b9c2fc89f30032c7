// The range that an activation clips to. As in XNNPACK, NaN and -0.0 are not changed by a clip.
#pragma once

#include <cstdint>
#include <limits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "abi.h"

namespace bnnedge::tflite {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// y = min(max(y, low), high)
struct Range {
  float low = -kInfinity, high = kInfinity;

  static Range OfActivation(int activation) {
    if (activation == kActivationRelu) return {0.0f, kInfinity};
    if (activation == kActivationReluN1To1) return {-1.0f, 1.0f};
    if (activation == kActivationRelu6) return {0.0f, 6.0f};
    return {};
  }

  bool IsAll() const { return low == -kInfinity && high == kInfinity; }

  // `to` may be `from`.
  void ClipAll(const float* from, int64_t count, float* to) const {
    int64_t i = 0;
#if defined(__SSE2__)
    // Both instructions return their second operand if one is NaN. Compilers do not use them for the loop below.
    const __m128 least = _mm_set1_ps(low), most = _mm_set1_ps(high);
    for (; i + 4 <= count; i += 4) {
      _mm_storeu_ps(to + i, _mm_min_ps(most, _mm_max_ps(least, _mm_loadu_ps(from + i))));
    }
#endif
    for (; i < count; ++i) {
      const float raised = from[i] < low ? low : from[i];
      to[i] = raised > high ? high : raised;
    }
  }
};

}  // namespace bnnedge::tflite
