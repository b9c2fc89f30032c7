// Packing with AVX2: 32 comparisons a word. Channels that fill no whole word take the portable loop.
#include <immintrin.h>

#include "../portable/pack_scalar.h"
#include "bnnedge/pack_kernel.h"
#include "lanes_avx2.h"

namespace bnnedge {
namespace {

inline __m256i Below(const float* values, __m256 limits) {
  return _mm256_castps_si256(_mm256_cmp_ps(limits, _mm256_loadu_ps(values), _CMP_GT_OQ));
}

void PackNhwcFloat(const float* values, float limit, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m256 limits = _mm256_set1_ps(limit);
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t left = channels;
    for (; left >= kWordBits; left -= kWordBits, values += kWordBits) {
      const auto below = [=](int64_t c) { return Below(values + c, limits); };
      *words++ = WordOf(below(0), below(8), below(16), below(24));
    }
    if (left > 0) ScalarPackNhwcFloat(values, limit, 1, left, words++);
    values += left;
  }
}

void PackNhwcFloatByChannel(const float* values, const float* limits, int64_t pixels, int64_t channels,
                            uint32_t* words) {
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t c = 0;
    for (; c + kWordBits <= channels; c += kWordBits) {
      const auto below = [=](int64_t lane) { return Below(values + c + lane, _mm256_loadu_ps(limits + c + lane)); };
      *words++ = WordOf(below(0), below(8), below(16), below(24));
    }
    if (c < channels) ScalarPackNhwcFloatByChannel(values + c, limits + c, 1, channels - c, words++);
    values += channels;
  }
}

void PackNhwcInt8(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words) {
  const __m256i zero = _mm256_set1_epi8(static_cast<char>(zero_point));
  for (int64_t i = 0; i < pixels; ++i) {
    int64_t left = channels;
    for (; left >= kWordBits; left -= kWordBits, values += kWordBits) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
      *words++ = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(zero, x)));
    }
    if (left > 0) ScalarPackNhwcInt8(values, zero_point, 1, left, words++);
    values += left;
  }
}

}  // namespace

constexpr PackKernel kPackAvx2 = [] {
  PackKernel kernel;
  kernel.pack_nhwc_float = PackNhwcFloat;
  kernel.pack_nhwc_float_by_channel = PackNhwcFloatByChannel;
  kernel.pack_nhwc_int8 = PackNhwcInt8;
  kernel.pack_nchw_float = ScalarPackNchwFloat;
  kernel.unpack_nhwc = ScalarUnpackNhwc;
  return kernel;
}();

}  // namespace bnnedge
