// The parts that both NEON stems share. In an unnamed namespace: see portable/output_transform.h.
#pragma once

#include <arm_neon.h>

#include "../portable/stem_scalar.h"

namespace bnnedge {
namespace {

struct NeonBytes {
  static constexpr int64_t kBytes = 16;
  static int8x16_t Load(const int8_t* from) { return vld1q_s8(from); }
  static void Store(int8_t* to, int8x16_t v) { vst1q_s8(to, v); }
  static int8x16_t Max(int8x16_t a, int8x16_t b) { return vmaxq_s8(a, b); }
};

}  // namespace
}  // namespace bnnedge
