// Up to 6 pixels x 64 output channels, AVX-512 with VNNI. A lane is an output channel: a step broadcasts four bytes of
// the image and multiplies them by four of each channel's filter; the sums are of 32 bits and never saturate.
// Registers at 6 x 64: 24 sums, 4 filter vectors, 1 for the image.
#include "stem_interleave.h"

namespace bnnedge {
namespace {

constexpr int kMostPixels = 6, kMostVectors = 4;
constexpr int64_t kVectorBytes = 64;

int64_t PackedBytes(int64_t blocks, int64_t steps) { return blocks * steps * kVectorBytes; }

// [blocks][steps][16][4]
void PackWeights(const int8_t* filter, int64_t blocks, int64_t steps, void* packed) {
  int8_t* to = static_cast<int8_t*>(packed);
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t k = 0; k < steps; ++k) {
      for (int64_t c = 0; c < kStemBlock; ++c, to += kStemTaps) {
        std::memcpy(to, filter + ((b * kStemBlock + c) * steps + k) * kStemTaps, kStemTaps);
      }
    }
  }
}

struct FloatCodes {
  const Requantization& to;
  __m512 low, high;
  __m512i zero;

  explicit FloatCodes(const Requantization& codes)
      : to(codes),
        low(_mm512_set1_ps(static_cast<float>(codes.low_code - codes.zero_point))),
        high(_mm512_set1_ps(static_cast<float>(codes.high_code - codes.zero_point))),
        zero(_mm512_set1_epi32(codes.zero_point)) {}

  __m128i Of(__m512i sum, int64_t channel) const {
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(to.multiplier + channel));
    v = _mm512_min_ps(_mm512_max_ps(v, low), high);
    const __m512i code = _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(code, zero));
  }
};

// As Requantized of stem_scalar.h, the even and the odd lanes' products apart.
struct FixedPointCodes {
  const Requantization& to;
  __m512i low, high, zero;

  explicit FixedPointCodes(const Requantization& codes)
      : to(codes),
        low(_mm512_set1_epi32(codes.low_code - codes.zero_point)),
        high(_mm512_set1_epi32(codes.high_code - codes.zero_point)),
        zero(_mm512_set1_epi32(codes.zero_point)) {}

  __m128i Of(__m512i sum, int64_t channel) const {
    const __m512i shifted = _mm512_sllv_epi32(sum, _mm512_loadu_si512(to.left_shift + channel));
    const __m512i m = _mm512_loadu_si512(to.mantissa + channel);
    const __m512i half_unit = _mm512_set1_epi64(int64_t{1} << 30);
    const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(shifted, m), half_unit);
    const __m512i odd =
        _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(shifted, 32), _mm512_srli_epi64(m, 32)), half_unit);
    const __m512i rounded = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 31), _mm512_slli_epi64(odd, 1));
    const __m512i one = _mm512_set1_epi32(1), right = _mm512_loadu_si512(to.right_shift + channel);
    const __m512i mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, right), one);
    const __m512i half = _mm512_add_epi32(_mm512_srli_epi32(mask, 1), _mm512_srli_epi32(rounded, 31));
    __m512i nearest = _mm512_srav_epi32(rounded, right);
    nearest = _mm512_mask_add_epi32(nearest, _mm512_cmpgt_epi32_mask(_mm512_and_si512(rounded, mask), half), nearest, one);
    nearest = _mm512_min_epi32(_mm512_max_epi32(nearest, low), high);
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(nearest, zero));
  }
};

template <int kPixels, int kVectors, typename ToCodes>
__attribute__((always_inline)) inline void Tile(const StemRow& row, const ToCodes& codes, int64_t pixel, int64_t block) {
  const int64_t block_bytes = row.rows * row.row_steps * kVectorBytes;
  const auto* weights = static_cast<const uint8_t*>(row.weights) + block * block_bytes;
  __m512i sum[kPixels][kVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 4
    for (int z = 0; z < kVectors; ++z) sum[i][z] = _mm512_loadu_si512(row.base + (block + z) * kStemBlock);
  }
  const uint8_t* input = row.input + pixel * row.pixel_step;
  const int64_t step = row.pixel_step;
  for (int64_t r = 0; r < row.rows; ++r, input += row.row_step) {
    const uint8_t* at[2] = {input, input + 3 * step};  // of every third pixel
    for (int64_t k = 0; k < row.row_steps; ++k, weights += kVectorBytes) {
      __m512i w[kVectors];
#pragma GCC unroll 4
      for (int z = 0; z < kVectors; ++z) w[z] = _mm512_load_si512(weights + z * block_bytes);
#pragma GCC unroll 6
      for (int i = 0; i < kPixels; ++i) {
        int32_t taps;
        std::memcpy(&taps, at[i / 3] + i % 3 * step + k * kStemTaps, sizeof(taps));
        const __m512i bytes = _mm512_set1_epi32(taps);
#pragma GCC unroll 4
        for (int z = 0; z < kVectors; ++z) sum[i][z] = _mm512_dpbusd_epi32(sum[i][z], bytes, w[z]);
      }
    }
  }
  int8_t* to = row.output + (pixel * row.blocks + block) * kStemBlock;
#pragma GCC unroll 6
  for (int i = 0; i < kPixels; ++i, to += row.blocks * kStemBlock) {
#pragma GCC unroll 4
    for (int z = 0; z < kVectors; ++z) {
      const __m128i code = codes.Of(sum[i][z], (block + z) * kStemBlock);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + z * kStemBlock), code);
    }
  }
}

template <int kVectors, typename ToCodes>
void Blocks(const StemRow& row, const ToCodes& codes, int64_t block) {
  int64_t i = 0;
  for (; i + kMostPixels <= row.pixels; i += kMostPixels) Tile<kMostPixels, kVectors>(row, codes, i, block);
  if (i + 3 <= row.pixels) {
    Tile<3, kVectors>(row, codes, i, block);
    i += 3;
  }
  for (; i < row.pixels; ++i) Tile<1, kVectors>(row, codes, i, block);
}

template <typename ToCodes>
void ConvolveTo(const StemRow& row) {
  const ToCodes codes(row.codes);
  int64_t block = 0;
  for (; block + kMostVectors <= row.blocks; block += kMostVectors) Blocks<kMostVectors>(row, codes, block);
  for (; block + 2 <= row.blocks; block += 2) Blocks<2>(row, codes, block);
  for (; block < row.blocks; ++block) Blocks<1>(row, codes, block);
}

void Convolve(const StemRow& row) {
  row.codes.arithmetic == Arithmetic::kFloat ? ConvolveTo<FloatCodes>(row) : ConvolveTo<FixedPointCodes>(row);
}

}  // namespace

const StemKernel kStemAvx512Vnni = {"avx512_vnni", false,    PackedBytes,       PackWeights,    QuantizeValues,
                                    Interleave,    Convolve, PoolRow<SseBytes>, DequantizeCodes};

}  // namespace bnnedge
