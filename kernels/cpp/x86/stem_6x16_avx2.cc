// Up to 6 tiles x 16 output channels, AVX2. Its only product of bytes saturates, so 16-bit integers are multiplied: see
// stem_toom_cook.h. A broadcast of two values of the image, which a load port does without other units, serves one
// multiplication and one addition for each 16 products.
// Registers at 6 x 16: 12 sums, 2 filter vectors, 1 for the image, 1 product.
#include <type_traits>

#include "../portable/stem_toom_cook.h"
#include "stem_interleave.h"

namespace bnnedge {
namespace {

constexpr int kVectors = 2;
constexpr int64_t kLanes = 8;

inline __m256i Load(const int32_t* values) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)); }

// Makes codes, without the zero point, of sums of the 16 channels from `channel` on.
class FloatCodes {
 public:
  FloatCodes(const Requantization& to, int64_t channel)
      : low_(_mm256_set1_ps(static_cast<float>(to.low_code - to.zero_point))),
        high_(_mm256_set1_ps(static_cast<float>(to.high_code - to.zero_point))) {
    for (int z = 0; z < kVectors; ++z) multiplier_[z] = _mm256_loadu_ps(to.multiplier + channel + z * kLanes);
  }

  __m256i Of(__m256i sums, int vector) const {
    const __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multiplier_[vector]);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low_), high_));  // halves to even
  }

 private:
  __m256 low_, high_, multiplier_[kVectors];
};

// The same as FixedPointCode. The products with m have 64 bits and are computed for the even lanes and for the odd
// ones. Bits 31 to 62 of a product are in the low half after a shift to the right by 31, and in the high half after a
// shift to the left by 1.
class FixedPointCodes {
 public:
  FixedPointCodes(const Requantization& to, int64_t channel)
      : low_(_mm256_set1_epi32(to.low_code - to.zero_point)), high_(_mm256_set1_epi32(to.high_code - to.zero_point)) {
    const __m256i one = _mm256_set1_epi32(1);
    for (int z = 0; z < kVectors; ++z, channel += kLanes) {
      left_[z] = Load(to.left_shift + channel);
      right_[z] = Load(to.right_shift + channel);
      even_[z] = Load(to.mantissa + channel);
      odd_[z] = _mm256_srli_epi64(even_[z], 32);
      mask_[z] = _mm256_sub_epi32(_mm256_sllv_epi32(one, right_[z]), one);
    }
  }

  __m256i Of(__m256i sums, int z) const {
    const __m256i shifted = _mm256_sllv_epi32(sums, left_[z]), half = _mm256_set1_epi64x(int64_t{1} << 30);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(shifted, even_[z]), half);
    const __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(shifted, 32), odd_[z]), half);
    const __m256i rounded = _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xaa);
    // A comparison is -1 where it holds.
    const __m256i rest_half = _mm256_sub_epi32(_mm256_srli_epi32(mask_[z], 1), _mm256_srai_epi32(rounded, 31));
    const __m256i up = _mm256_cmpgt_epi32(_mm256_and_si256(rounded, mask_[z]), rest_half);
    const __m256i nearest = _mm256_sub_epi32(_mm256_srav_epi32(rounded, right_[z]), up);
    return _mm256_min_epi32(_mm256_max_epi32(nearest, low_), high_);
  }

 private:
  __m256i low_, high_, left_[kVectors], right_[kVectors], even_[kVectors], odd_[kVectors], mask_[kVectors];
};

struct Avx2 {
  static constexpr int64_t kMostTiles = 6;
  static constexpr int kVectorBytes = 32;
  static constexpr int64_t kNeighbours = 2;

  template <int64_t kTiles>
  static inline void Multiply(const int16_t* input, int64_t tile_step, const int16_t* weights, int64_t depth,
                              uint32_t (*products)[kStemBlock]) {
    __m256i sum[kTiles][kVectors];
#pragma GCC unroll 6
    for (int t = 0; t < kTiles; ++t) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; k += kNeighbours, input += kNeighbours, weights += kNeighbours * kStemBlock) {
      const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
      const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + kStemBlock));
#pragma GCC unroll 6
      for (int t = 0; t < kTiles; ++t) {
        const __m256i its = _mm256_set1_epi32(LoadVector<int32_t>(input + t * tile_step));
        sum[t][0] = _mm256_add_epi32(sum[t][0], _mm256_madd_epi16(its, w0));
        sum[t][1] = _mm256_add_epi32(sum[t][1], _mm256_madd_epi16(its, w1));
      }
    }
#pragma GCC unroll 6
    for (int t = 0; t < kTiles; ++t) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(products[t]), sum[t][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(products[t] + kLanes), sum[t][1]);
    }
  }

  static void Widen(const uint8_t* from, uint16_t* to) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(bytes));
  }

  template <Arithmetic kArithmetic>
  class Codes {
   public:
    Codes(const Requantization& to, int64_t channel)
        : codes_(to, channel), zero_(_mm256_set1_epi16(static_cast<int16_t>(to.zero_point))) {}

    template <typename Sums>
    void Store(const Sums* sums, int8_t* to) const {
      __m256i codes[kVectors];
#pragma GCC unroll 2
      for (int z = 0; z < kVectors; ++z) codes[z] = codes_.Of((__m256i)sums[z], z);
      const __m256i packed = _mm256_add_epi16(_mm256_packs_epi32(codes[0], codes[1]), zero_);
      const __m256i in_order = _mm256_permute4x64_epi64(packed, 0xd8);  // packing takes fours of the two in turn
      const __m128i low = _mm256_castsi256_si128(in_order), high = _mm256_extracti128_si256(in_order, 1);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
    }

   private:
    const std::conditional_t<kArithmetic == Arithmetic::kFloat, FloatCodes, FixedPointCodes> codes_;
    const __m256i zero_;
  };
};

}  // namespace

constexpr StemKernel kStemAvx2 = [] {
  StemKernel kernel;
  kernel.name = "avx2";
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights<Avx2::kNeighbours>;
  kernel.scratch_bytes = ScratchBytes;
  kernel.quantize = QuantizeValues;
  kernel.interleave = Interleave;
  kernel.convolve = Convolve<Avx2>;
  kernel.pool = PoolRow<SseBytes>;
  kernel.dequantize = DequantizeCodes;
  kernel.step_taps = 1;
  return kernel;
}();

}  // namespace bnnedge
