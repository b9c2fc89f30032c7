// 6 pixels x 16 output channels, NEON: 24 sums, 4 vectors of weights, 1 of the image.
#include <arm_neon.h>

#include "../portable/pointwise.h"

namespace bnnedge {
namespace {

struct Lanes {
  using Floats = float32x4_t;
  static constexpr int kLanes = 4;
  static float32x4_t Load(const float* from) { return vld1q_f32(from); }
  static float32x4_t Same(float value) { return vdupq_n_f32(value); }
  static void Store(float* to, float32x4_t y) { vst1q_f32(to, y); }
  static float32x4_t MultiplyAdd(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
  static float32x4_t Clip(float32x4_t y, float32x4_t low, float32x4_t high) {
    return vminq_f32(vmaxq_f32(y, low), high);
  }
};

}  // namespace

const PointwiseKernel kPointwiseNeon = {16, RunPointwise<Lanes, 4>};

}  // namespace bnnedge
