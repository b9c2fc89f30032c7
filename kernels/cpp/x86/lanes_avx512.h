// Vectors of 16 floats, AVX-512: lanes as portable/tail.h wants them. In an unnamed namespace: see
// portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bnnedge {
namespace {

struct Avx512Lanes {
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static __m512 Load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 Same(float value) { return _mm512_set1_ps(value); }
  static void Store(float* to, __m512 y) { _mm512_storeu_ps(to, y); }
  static __m512 Plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 Times(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 PickBelow(__m512 a, __m512 b, __m512 c, __m512 d) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), d, c);
  }
  // Both instructions return their second operand if one is NaN.
  static __m512 Clip(__m512 y, __m512 low, __m512 high) { return _mm512_min_ps(high, _mm512_max_ps(low, y)); }
  static uint32_t Below(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
};

}  // namespace
}  // namespace bnnedge
