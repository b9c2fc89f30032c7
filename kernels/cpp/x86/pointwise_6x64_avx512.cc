// 6 pixels x 64 output channels, AVX-512: 24 sums, 4 vectors of weights; elements of the image are broadcast by the
// multiplication itself.
#include <immintrin.h>

#include "../portable/pointwise.h"

namespace bnnedge {
namespace {

struct Lanes {
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static __m512 Load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 Same(float value) { return _mm512_set1_ps(value); }
  static void Store(float* to, __m512 y) { _mm512_storeu_ps(to, y); }
  static __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
  // Both instructions return their second operand if one is NaN.
  static __m512 Clip(__m512 y, __m512 low, __m512 high) { return _mm512_min_ps(high, _mm512_max_ps(low, y)); }
};

}  // namespace

const PointwiseKernel kPointwiseAvx512 = {64, RunPointwise<Lanes, 4>};

}  // namespace bnnedge
