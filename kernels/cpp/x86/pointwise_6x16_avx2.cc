// 6 pixels x 16 output channels, AVX2 and FMA: 12 sums, 2 vectors of weights, 1 of the image.
#include <immintrin.h>

#include "../portable/pointwise.h"

namespace bnnedge {
namespace {

struct Lanes {
  using Floats = __m256;
  static constexpr int kLanes = 8;
  static __m256 Load(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 Same(float value) { return _mm256_set1_ps(value); }
  static void Store(float* to, __m256 y) { _mm256_storeu_ps(to, y); }
  static __m256 MultiplyAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
  // Both instructions return their second operand if one is NaN.
  static __m256 Clip(__m256 y, __m256 low, __m256 high) { return _mm256_min_ps(high, _mm256_max_ps(low, y)); }
};

}  // namespace

const PointwiseKernel kPointwiseAvx2 = {16, RunPointwise<Lanes, 2>};

}  // namespace bnnedge
