// Packing and unpacking with NEON.
#include <arm_neon.h>

#include <algorithm>
#include <cstdint>

#include "bnnedge/layout.h"
#include "bnnedge/pack_kernel.h"
#include "lanes_neon.h"

namespace bnnedge {
namespace {

uint8x16_t Below16(const float* values, const float32x4x4_t& limits) {
  const uint32x4_t m0 = vcltq_f32(vld1q_f32(values), limits.val[0]);
  const uint32x4_t m1 = vcltq_f32(vld1q_f32(values + 4), limits.val[1]);
  const uint32x4_t m2 = vcltq_f32(vld1q_f32(values + 8), limits.val[2]);
  const uint32x4_t m3 = vcltq_f32(vld1q_f32(values + 12), limits.val[3]);
  const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(m0), vreinterpretq_u16_u32(m1));
  const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(m2), vreinterpretq_u16_u32(m3));
  return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

template <typename T>
uint32_t LastWord(const T* values, T limit, int64_t bits) {
  uint32_t word = 0;
  for (int64_t b = 0; b < bits; ++b) word |= static_cast<uint32_t>(values[b] < limit) << b;
  return word;
}

void PackNhwcFloat(const float* values, float limit, int64_t pixels, int64_t channels, uint32_t* words) {
  const float32x4_t same = vdupq_n_f32(limit);
  const float32x4x4_t limits = {{same, same, same, same}};
  const int64_t last = channels % kWordBits;  // channels that fill no whole word
  // If there are none, the pixels are one long row.
  const int64_t rows = last == 0 ? 1 : pixels;
  const int64_t full = channels / kWordBits * (last == 0 ? pixels : 1);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t w = 0; w < full; ++w, values += kWordBits) {
      *words++ = MaskWord(Below16(values, limits), Below16(values + 16, limits));
    }
    if (last != 0) *words++ = LastWord(values, limit, last);
    values += last;
  }
}

float32x4x4_t Load16(const float* values) {
  return {{vld1q_f32(values), vld1q_f32(values + 4), vld1q_f32(values + 8), vld1q_f32(values + 12)}};
}

void PackNhwcFloatByChannel(const float* values, const float* limits, int64_t pixels, int64_t channels,
                            uint32_t* words) {
  for (int64_t i = 0; i < pixels; ++i, values += channels) {
    int64_t c = 0;
    for (; c + kWordBits <= channels; c += kWordBits) {
      *words++ = MaskWord(Below16(values + c, Load16(limits + c)), Below16(values + c + 16, Load16(limits + c + 16)));
    }
    if (c == channels) continue;
    uint32_t word = 0;
    for (int64_t b = 0; c + b < channels; ++b) word |= static_cast<uint32_t>(values[c + b] < limits[c + b]) << b;
    *words++ = word;
  }
}

void PackNhwcInt8(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words) {
  const int64_t last = channels % kWordBits;
  const int64_t rows = last == 0 ? 1 : pixels;
  const int64_t full = channels / kWordBits * (last == 0 ? pixels : 1);
  const int8_t zero = static_cast<int8_t>(zero_point);
  const int8x16_t zeros = vdupq_n_s8(zero);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t w = 0; w < full; ++w, values += kWordBits) {
      *words++ = MaskWord(vcltq_s8(vld1q_s8(values), zeros), vcltq_s8(vld1q_s8(values + 16), zeros));
    }
    if (last != 0) *words++ = LastWord(values, zero, last);
    values += last;
  }
}

// Packs the words of 4 * kVectorCount neighbouring pixels, from the last channel to the first: sli shifts a word up by
// one bit and inserts the new bit below.
template <int kVectorCount>
void PackColumns(const float* row, int64_t bits, int64_t pixels, int64_t pixel_words, uint32_t* words) {
  uint32x4_t word[kVectorCount];
  for (int v = 0; v < kVectorCount; ++v) word[v] = vdupq_n_u32(0);
  for (int64_t b = bits - 1; b >= 0; --b) {
    for (int v = 0; v < kVectorCount; ++v) {
      word[v] = vsliq_n_u32(vcltzq_f32(vld1q_f32(row + b * pixels + 4 * v)), word[v], 1);
    }
  }
  for (int v = 0; v < kVectorCount; ++v) {
    uint32_t* out = words + 4 * v * pixel_words;
    vst1q_lane_u32(out, word[v], 0);
    vst1q_lane_u32(out + pixel_words, word[v], 1);
    vst1q_lane_u32(out + 2 * pixel_words, word[v], 2);
    vst1q_lane_u32(out + 3 * pixel_words, word[v], 3);
  }
}

void PackNchwFloat(const float* values, int64_t channels, int64_t pixels, uint32_t* words) {
  const int64_t pixel_words = WordsFor(channels);
  for (int64_t w = 0; w < pixel_words; ++w) {
    const int64_t bits = std::min<int64_t>(kWordBits, channels - w * kWordBits);
    const float* rows = values + w * kWordBits * pixels;
    int64_t i = 0;
    for (; i + 16 <= pixels; i += 16) PackColumns<4>(rows + i, bits, pixels, pixel_words, words + i * pixel_words + w);
    for (; i + 4 <= pixels; i += 4) PackColumns<1>(rows + i, bits, pixels, pixel_words, words + i * pixel_words + w);
    for (; i < pixels; ++i) {
      uint32_t word = 0;
      for (int64_t b = 0; b < bits; ++b) word |= static_cast<uint32_t>(rows[b * pixels + i] < 0.0f) << b;
      words[i * pixel_words + w] = word;
    }
  }
}

void UnpackNhwcFloat(const uint32_t* words, int64_t pixels, int64_t channels, float* values) {
  constexpr int32_t kToTop[4] = {31, 30, 29, 28};
  const int32x4_t to_top = vld1q_s32(kToTop);
  const uint32x4_t sign = vdupq_n_u32(0x80000000u), one = vreinterpretq_u32_f32(vdupq_n_f32(1.0f));
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
      const uint32_t word = *words++;
      int64_t b = 0;
      for (; b + 4 <= bits; b += 4, values += 4) {
        const uint32x4_t top = vshlq_u32(vdupq_n_u32(word >> b), to_top);
        vst1q_f32(values, vreinterpretq_f32_u32(vbslq_u32(sign, top, one)));
      }
      for (; b < bits; ++b) *values++ = (word >> b) & 1u ? -1.0f : 1.0f;
    }
  }
}

}  // namespace

constexpr PackKernel kPackNeon = [] {
  PackKernel kernel;
  kernel.pack_nhwc_float = PackNhwcFloat;
  kernel.pack_nhwc_float_by_channel = PackNhwcFloatByChannel;
  kernel.pack_nhwc_int8 = PackNhwcInt8;
  kernel.pack_nchw_float = PackNchwFloat;
  kernel.unpack_nhwc = UnpackNhwcFloat;
  return kernel;
}();

}  // namespace bnnedge
