// The output transform of the popcounts of 16 output channels; bnnedge/conv_kernel.h says what is stored. In an unnamed
// namespace: see portable/output_transform.h.
#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#include "bnnedge/conv_kernel.h"

namespace bnnedge {
namespace {

constexpr int64_t kGroup = 16;  // output channels
constexpr int kVectors = 4;     // in a group

// Stores a whole group, or its first `channels` values by way of the stack.
template <typename T, typename Vector>
inline void StoreChannels(T* out, const Vector (&values)[kVectors], int64_t channels) {
  constexpr int64_t kLanes = kGroup / kVectors;
  static_assert(sizeof(T) * kLanes == sizeof(Vector), "a vector holds the values of four channels");
  if (channels == kGroup) {
    for (int v = 0; v < kVectors; ++v) std::memcpy(out + kLanes * v, &values[v], sizeof(Vector));
    return;
  }
  std::memcpy(out, values, sizeof(T) * static_cast<size_t>(channels));
}

template <int kPixels>
inline void StoreSums(const ConvStrip& strip, int64_t pixel, int64_t channel, int64_t channels,
                      const int32x4_t (&value)[kPixels][kVectors]) {
  for (int i = 0; i < kPixels; ++i) {
    StoreChannels(static_cast<int32_t*>(strip.output) + (pixel + i) * strip.out_pixel_step + channel, value[i],
                  channels);
  }
}

template <int kPixels>
inline void StoreFloats(const ConvStrip& strip, int64_t pixel, int64_t channel, int64_t channels,
                        const float32x4_t (&y)[kPixels][kVectors]) {
  float* out = static_cast<float*>(strip.output) + pixel * strip.out_pixel_step + channel * strip.out_channel_step;
  if (strip.out_channel_step == 1) {
    for (int i = 0; i < kPixels; ++i) StoreChannels(out + i * strip.out_pixel_step, y[i], channels);
    return;
  }
  float rows[kPixels][kGroup];
  for (int i = 0; i < kPixels; ++i) std::memcpy(rows[i], y[i], sizeof(rows[i]));
  for (int64_t c = 0; c < channels; ++c) {
    for (int i = 0; i < kPixels; ++i) out[c * strip.out_channel_step + i * strip.out_pixel_step] = rows[i][c];
  }
}

// Rounds halves away from zero. Values saturate three times: to 32 bits by fcvtas, then to 16 and to 8 bits.
template <int kPixels>
inline void StoreInt8(const ConvStrip& strip, int64_t pixel, int64_t channel, int64_t channels,
                      const float32x4_t (&y)[kPixels][kVectors]) {
  for (int i = 0; i < kPixels; ++i) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(vcvtaq_s32_f32(y[i][0])), vqmovn_s32(vcvtaq_s32_f32(y[i][1])));
    const int16x8_t high = vcombine_s16(vqmovn_s32(vcvtaq_s32_f32(y[i][2])), vqmovn_s32(vcvtaq_s32_f32(y[i][3])));
    const int8x16_t bytes = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
    int8_t* out = static_cast<int8_t*>(strip.output) + (pixel + i) * strip.out_pixel_step + channel;
    if (channels == kGroup) {
      vst1q_s8(out, bytes);
    } else {
      std::memcpy(out, &bytes, static_cast<size_t>(channels));
    }
  }
}

// 16 lanes of all ones or all zeros to 16 bits, least significant first.
inline uint16_t MaskBits(uint32x4_t m0, uint32x4_t m1, uint32x4_t m2, uint32x4_t m3) {
  const uint8x16_t weight = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
  const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(m0), vreinterpretq_u16_u32(m1));
  const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(m2), vreinterpretq_u16_u32(m3));
  uint8x16_t bits = vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)), weight);
  bits = vpaddq_u8(bits, bits);
  bits = vpaddq_u8(bits, bits);
  bits = vpaddq_u8(bits, bits);
  return vgetq_lane_u16(vreinterpretq_u16_u8(bits), 0);
}

// Stores half a word, which is 16 channels. If the number of halves is odd, the last word is cleared beyond them.
template <int kPixels>
inline void StoreBits(const ConvStrip& strip, int64_t pixel, int64_t channel,
                      const uint32x4_t (&bit)[kPixels][kVectors]) {
  const bool last_half = channel + kGroup >= strip.channels && channel % kWordBits == 0;
  for (int i = 0; i < kPixels; ++i) {
    uint32_t* word = static_cast<uint32_t*>(strip.output) + (pixel + i) * strip.out_pixel_step + channel / kWordBits;
    const uint16_t half = MaskBits(bit[i][0], bit[i][1], bit[i][2], bit[i][3]);
    if (last_half) {
      *word = half;
    } else {
      std::memcpy(reinterpret_cast<unsigned char*>(word) + channel % kWordBits / 8, &half, sizeof(half));
    }
  }
}

template <OutputKind kKind, int kPixels>
inline void Store(const ConvStrip& strip, int64_t pixel, int64_t channel, const int32x4_t (&p)[kPixels][kVectors]) {
  const int64_t channels = std::min(kGroup, strip.channels - channel);
  int32x4_t value[kPixels][kVectors];
  uint32x4_t bit[kPixels][kVectors];
  float32x4_t y[kPixels][kVectors];
  for (int i = 0; i < kPixels; ++i) {
    const int32_t* base = strip.base + strip.base_offset[pixel + i] + channel;
    for (int v = 0; v < kVectors; ++v) {
      const int32x4_t b = vld1q_s32(base + 4 * v);
      if constexpr (kKind == OutputKind::kBits) {
        bit[i][v] = vcgtq_s32(p[i][v], b);
        continue;
      }
      value[i][v] = vmlaq_s32(b, p[i][v], vdupq_n_s32(strip.doubled));
      if constexpr (kKind == OutputKind::kSums) continue;
      if (strip.clamps) {
        value[i][v] = vminq_s32(vmaxq_s32(value[i][v], vdupq_n_s32(strip.clamp_low)), vdupq_n_s32(strip.clamp_high));
      }
      y[i][v] = vaddq_f32(vmulq_f32(vcvtq_f32_s32(value[i][v]), vld1q_f32(strip.multiplier + channel + 4 * v)),
                          vld1q_f32(strip.bias + channel + 4 * v));
    }
  }
  if constexpr (kKind == OutputKind::kBits) StoreBits<kPixels>(strip, pixel, channel, bit);
  if constexpr (kKind == OutputKind::kSums) StoreSums<kPixels>(strip, pixel, channel, channels, value);
  if constexpr (kKind == OutputKind::kFloat) StoreFloats<kPixels>(strip, pixel, channel, channels, y);
  if constexpr (kKind == OutputKind::kInt8) StoreInt8<kPixels>(strip, pixel, channel, channels, y);
}

}  // namespace
}  // namespace bnnedge
