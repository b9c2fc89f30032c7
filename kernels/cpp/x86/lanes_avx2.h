// Vectors of 8 floats, AVX2: lanes as portable/tail.h wants them. In an unnamed namespace: see
// portable/output_transform.h.
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

// The bits of 32 lanes that have all bits set or none, in order. Packing with saturation keeps the lanes so, and takes
// fours of two vectors in turn.
inline uint32_t WordOf(__m256i lanes0, __m256i lanes8, __m256i lanes16, __m256i lanes24) {
  const __m256i low = _mm256_packs_epi32(lanes0, lanes8), high = _mm256_packs_epi32(lanes16, lanes24);
  const __m256i fours = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), fours);
  return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
}

}  // namespace
}  // namespace bnnedge
