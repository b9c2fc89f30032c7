// Vectors of 8 floats, AVX2: lanes as portable/tail.h wants them. In an unnamed namespace: see portable/epilogue.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bnnedge {
namespace {

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
}  // namespace bnnedge
