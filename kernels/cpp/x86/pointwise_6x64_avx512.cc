// 6 pixels x 64 output channels, AVX-512: 24 sums, 4 vectors of weights; elements of the image are broadcast by the
// multiplication itself.
#include "../portable/pointwise.h"
#include "lanes_avx512.h"

namespace bnnedge {
namespace {

struct Lanes : Avx512Lanes {
  static __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

const PointwiseKernel kPointwiseAvx512 = {64, RunPointwise<Lanes, 4>};

}  // namespace bnnedge
