// The parts that both AVX-512 stems share. In an unnamed namespace: see portable/output_transform.h.
#pragma once

#include "stem_interleave.h"

namespace bnnedge {
namespace {

struct Avx512Bytes {
  static constexpr int64_t kBytes = 64;
  static __m512i Load(const int8_t* from) { return _mm512_loadu_si512(from); }
  static void Store(int8_t* to, __m512i v) { _mm512_storeu_si512(to, v); }
  static __m512i Max(__m512i a, __m512i b) { return _mm512_max_epi8(a, b); }
};

// Packs to [blocks][padded_steps][16][4]; steps behind the last one are 0.
inline void PackByStep(const int8_t* filter, const StemShape& shape, int64_t padded_steps, void* packed) {
  const int64_t blocks = shape.blocks, steps = shape.Steps();
  int8_t* to = static_cast<int8_t*>(packed);
  std::memset(to, 0, static_cast<size_t>(blocks * padded_steps * kStemBlock * kStemTaps));
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t k = 0; k < steps; ++k) {
      for (int64_t c = 0; c < kStemBlock; ++c) {
        std::memcpy(to + ((b * padded_steps + k) * kStemBlock + c) * kStemTaps,
                    filter + ((b * kStemBlock + c) * steps + k) * kStemTaps, kStemTaps);
      }
    }
  }
}

// Step 4 of stem.h for 16 channels. `For` loads their parameters, `Of` makes codes of their sums.
struct FloatCodes {
  const Requantization& to;
  __m512 low, high;
  __m512i zero;

  explicit FloatCodes(const Requantization& codes)
      : to(codes),
        low(_mm512_set1_ps(static_cast<float>(codes.low_code - codes.zero_point))),
        high(_mm512_set1_ps(static_cast<float>(codes.high_code - codes.zero_point))),
        zero(_mm512_set1_epi32(codes.zero_point)) {}

  struct Block {
    __m512 multiplier, low, high;
    __m512i zero;

    __m128i Of(__m512i sum) const {
      __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier);
      v = _mm512_min_ps(_mm512_max_ps(v, low), high);
      const __m512i code = _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      return _mm512_cvtepi32_epi8(_mm512_add_epi32(code, zero));
    }
  };
  Block For(int64_t channel) const { return {_mm512_loadu_ps(to.multiplier + channel), low, high, zero}; }
};

// The same as FixedPointCode of stem_scalar.h. The products have 64 bits, for the even lanes and for the odd ones.
struct FixedPointCodes {
  const Requantization& to;
  __m512i low, high, zero;

  explicit FixedPointCodes(const Requantization& codes)
      : to(codes),
        low(_mm512_set1_epi32(codes.low_code - codes.zero_point)),
        high(_mm512_set1_epi32(codes.high_code - codes.zero_point)),
        zero(_mm512_set1_epi32(codes.zero_point)) {}

  struct Block {
    __m512i even_m, odd_m, left, right, mask, half, low, high, zero;

    __m128i Of(__m512i sum) const {
      const __m512i shifted = _mm512_sllv_epi32(sum, left), half_unit = _mm512_set1_epi64(int64_t{1} << 30);
      const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(shifted, even_m), half_unit);
      const __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(shifted, 32), odd_m), half_unit);
      const __m512i rounded = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 31), _mm512_slli_epi64(odd, 1));
      const __m512i limit = _mm512_add_epi32(half, _mm512_srli_epi32(rounded, 31));
      const __mmask16 up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(rounded, mask), limit);
      __m512i nearest = _mm512_srav_epi32(rounded, right);
      nearest = _mm512_mask_add_epi32(nearest, up, nearest, _mm512_set1_epi32(1));
      nearest = _mm512_min_epi32(_mm512_max_epi32(nearest, low), high);
      return _mm512_cvtepi32_epi8(_mm512_add_epi32(nearest, zero));
    }
  };

  Block For(int64_t channel) const {
    const __m512i m = _mm512_loadu_si512(to.mantissa + channel), right = _mm512_loadu_si512(to.right_shift + channel);
    const __m512i one = _mm512_set1_epi32(1), mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, right), one);
    return {m,
            _mm512_srli_epi64(m, 32),
            _mm512_loadu_si512(to.left_shift + channel),
            right,
            mask,
            _mm512_srli_epi32(mask, 1),
            low,
            high,
            zero};
  }
};

}  // namespace
}  // namespace bnnedge
