// The parts of a StemKernel that are plain loops, which compilers vectorise. In an unnamed namespace: see
// output_transform.h. The pool works on vectors of kBytes codes that each instruction set supplies as a class with
// Load, Store and Max.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bnnedge/stem_kernel.h"

namespace bnnedge {
namespace {

constexpr int32_t kCodeToByte = 128;

struct ScalarBytes {
  static constexpr int64_t kBytes = kStemBlock;
  struct Value {
    int8_t code[kStemBlock];
  };
  static Value Load(const int8_t* from) {
    Value v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void Store(int8_t* to, const Value& v) { std::memcpy(to, &v, sizeof(v)); }
  static Value Max(Value a, const Value& b) {
    for (int64_t i = 0; i < kStemBlock; ++i) a.code[i] = a.code[i] < b.code[i] ? b.code[i] : a.code[i];
    return a;
  }
};

template <typename Bytes>
inline int64_t PoolChannels(const StemPoolRow& row, int64_t pixel, int64_t channel) {
  const int64_t padded = row.blocks * kStemBlock, start = pixel * row.stride - row.pad;
  const int64_t first = std::max<int64_t>(start, 0), last = std::min(start + row.kernel, row.columns);
  for (; channel + Bytes::kBytes <= padded; channel += Bytes::kBytes) {
    auto best = Bytes::Load(row.rows[0] + first * padded + channel);
    for (int64_t r = 0; r < row.row_count; ++r) {
      const int8_t* from = row.rows[r] + first * padded + channel;
      for (int64_t x = first; x < last; ++x, from += padded) best = Bytes::Max(best, Bytes::Load(from));
    }
    Bytes::Store(row.output + pixel * padded + channel, best);
  }
  return channel;
}

// Pools in vectors of Bytes, and the channels that are left in those of Rest.
template <typename Bytes, typename Rest = Bytes>
inline void PoolRow(const StemPoolRow& row) {
  for (int64_t i = 0; i < row.pixels; ++i) {
    const int64_t done = PoolChannels<Bytes>(row, i, 0);
    PoolChannels<Rest>(row, i, done);
  }
}

inline float RoundedToEven(float value) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the last bits, with halves to even.
  constexpr float kShift = 12582912.0f;
  return value + kShift - kShift;
}

// The bounds keep the float in the range of int32. They are codes themselves, so rounding cannot cross them. The
// comparisons are such that a NaN becomes the lowest code.
inline void QuantizeValues(const float* values, int64_t count, Arithmetic arithmetic, const Quantization& codes,
                           uint8_t* bytes) {
  const float scale = codes.scale;
  const int32_t zero = codes.zero_point + kCodeToByte;
  const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
  if (arithmetic == Arithmetic::kFloat) {
    for (int64_t i = 0; i < count; ++i) {
      float v = values[i] / scale;
      v = v > low ? v : low;
      v = v < high ? v : high;
      bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(RoundedToEven(v)) + zero);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    float v = values[i] / scale;
    v = v > low ? v : low;
    v = v < high ? v : high;
    const float whole = static_cast<float>(static_cast<int32_t>(v)), rest = v - whole;  // exact, towards 0
    const int32_t away = static_cast<int32_t>(rest >= 0.5f) - static_cast<int32_t>(rest <= -0.5f);
    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(whole) + away + zero);
  }
}

inline void InterleavePlanes(const uint8_t* planes, int64_t plane_step, int64_t channels, int64_t pixels,
                             uint8_t* bytes) {
  for (int64_t c = 0; c < channels; ++c) {
    const uint8_t* const plane = planes + c * plane_step;
    for (int64_t i = 0; i < pixels; ++i) bytes[i * channels + c] = plane[i];
  }
}

inline void DequantizeCodes(const int8_t* codes, int64_t padded, int64_t pixels, int64_t channels,
                            const Quantization& target, float* values) {
  const int32_t zero_point = target.zero_point;
  const float scale = target.scale;
  for (int64_t i = 0; i < pixels; ++i, codes += padded, values += channels) {
    for (int64_t c = 0; c < channels; ++c) values[c] = static_cast<float>(codes[c] - zero_point) * scale;
  }
}

// Step 4 of stem.h. The code is clamped before the zero point is added, so that the addition cannot overflow.
inline int8_t FixedPointCode(const Requantization& to, int32_t sum, int64_t channel) {
  const auto shifted = static_cast<int32_t>(static_cast<uint32_t>(sum) << to.left_shift[channel]);
  const int64_t product = int64_t{shifted} * to.mantissa[channel];
  const auto rounded = static_cast<int32_t>((product + (int64_t{1} << 30)) >> 31);
  const int32_t right = to.right_shift[channel];
  const auto mask = static_cast<int32_t>((uint32_t{1} << right) - 1u);
  const int32_t half = (mask >> 1) + (rounded < 0 ? 1 : 0);
  const int32_t nearest = (rounded >> right) + ((rounded & mask) > half ? 1 : 0);
  const int32_t low = to.low_code - to.zero_point, high = to.high_code - to.zero_point;
  return static_cast<int8_t>(std::min(std::max(nearest, low), high) + to.zero_point);
}

// Step 4 of stem.h for the sums of a block, in one loop for each arithmetic.
inline void RequantizeBlock(const Requantization& to, const int32_t* sums, int64_t channel, int8_t* codes) {
  if (to.arithmetic == Arithmetic::kFloat) {
    const auto low = static_cast<float>(to.low_code - to.zero_point);
    const auto high = static_cast<float>(to.high_code - to.zero_point);
    int32_t whole[kStemBlock];
    for (int64_t c = 0; c < kStemBlock; ++c) {
      float v = static_cast<float>(sums[c]) * to.multiplier[channel + c];
      v = v < low ? low : v;
      v = v > high ? high : v;
      whole[c] = static_cast<int32_t>(RoundedToEven(v)) + to.zero_point;
    }
    for (int64_t c = 0; c < kStemBlock; ++c) codes[c] = static_cast<int8_t>(whole[c]);
    return;
  }
  for (int64_t c = 0; c < kStemBlock; ++c) codes[c] = FixedPointCode(to, sums[c], channel + c);
}

}  // namespace
}  // namespace bnnedge
