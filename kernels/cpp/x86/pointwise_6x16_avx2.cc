// 6 pixels x 16 output channels, AVX2 and FMA: 12 sums, 2 vectors of weights, 1 of the image.
#include "../portable/pointwise.h"
#include "lanes_avx2.h"

namespace bnnedge {
namespace {

struct Lanes : Avx2Lanes {
  static __m256 MultiplyAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

const PointwiseKernel kPointwiseAvx2 = {16, RunPointwise<Lanes, 2>};

}  // namespace bnnedge
