// Four vectors of 4 floats, NEON: lanes as portable/tail.h wants them. In an unnamed namespace: see
// portable/output_transform.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace bnnedge {
namespace {

// The bits of 32 bytes that have all bits set or none, in order.
inline uint32_t MaskWord(uint8x16_t low, uint8x16_t high) {
  const uint8x16_t weight = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
  uint8x16_t bits = vpaddq_u8(vandq_u8(low, weight), vandq_u8(high, weight));
  bits = vpaddq_u8(bits, bits);
  bits = vpaddq_u8(bits, bits);
  return vgetq_lane_u32(vreinterpretq_u32_u8(bits), 0);
}

struct NeonLanes {
  struct Floats {
    float32x4_t part[4];
  };
  static constexpr int kLanes = 16;

  template <typename Body>
  static Floats Each(const Body& body) {
    return {{body(0), body(1), body(2), body(3)}};
  }
  static Floats Load(const float* from) {
    return Each([from](int i) { return vld1q_f32(from + 4 * i); });
  }
  static Floats Same(float value) {
    return Each([value](int) { return vdupq_n_f32(value); });
  }
  static void Store(float* to, const Floats& y) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, y.part[i]);
  }
  static Floats Plus(const Floats& a, const Floats& b) {
    return Each([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
  }
  static Floats Times(const Floats& a, const Floats& b) {
    return Each([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
  }
  static Floats PickBelow(const Floats& a, const Floats& b, const Floats& c, const Floats& d) {
    return Each([&](int i) { return vbslq_f32(vcltq_f32(a.part[i], b.part[i]), c.part[i], d.part[i]); });
  }
  static Floats Clip(const Floats& y, const Floats& low, const Floats& high) {
    const Floats raised = PickBelow(y, low, low, y);
    return PickBelow(high, raised, high, raised);
  }
  static uint32_t Below(const Floats& a, const Floats& b) {
    uint16x8_t half[2];
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t first = vcltq_f32(a.part[2 * i], b.part[2 * i]);
      const uint32x4_t second = vcltq_f32(a.part[2 * i + 1], b.part[2 * i + 1]);
      half[i] = vuzp1q_u16(vreinterpretq_u16_u32(first), vreinterpretq_u16_u32(second));
    }
    const uint8x16_t mask = vuzp1q_u8(vreinterpretq_u8_u16(half[0]), vreinterpretq_u8_u16(half[1]));
    return MaskWord(mask, vdupq_n_u8(0));
  }
};

}  // namespace
}  // namespace bnnedge
