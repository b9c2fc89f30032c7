// Up to 4 pixels x 16 output channels, AVX2. Its only product of bytes saturates, so both factors are widened to 16
// bits: the filter's when it is packed, the windows of a tile before all its channels. Then a broadcast of two taps,
// which a load port does by itself, feeds one multiplication and one addition for each 16 products.
// Registers at 4 x 16: 8 sums, 2 filter vectors, 1 for the image, 2 temporaries.
#include "stem_interleave.h"

namespace bnnedge {
namespace {

constexpr int kMostPixels = 4, kVectors = 2;
constexpr int64_t kLanes = 8, kPair = 2, kStepWords = kStemBlock * kPair;

int64_t PackedBytes(int64_t blocks, int64_t steps) { return blocks * steps * kStepWords * int64_t{sizeof(int16_t)}; }

// int16 [blocks][steps][vectors][8][2]
void PackWeights(const int8_t* filter, int64_t blocks, int64_t steps, void* packed) {
  int16_t* to = static_cast<int16_t*>(packed);
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t k = 0; k < steps; ++k) {
      for (int64_t lane = 0; lane < kStemBlock; ++lane, to += kPair) {
        const int8_t* const taps = filter + ((b * kStemBlock + lane) * steps + k) * kPair;
        std::copy(taps, taps + kPair, to);
      }
    }
  }
}

// 16 bytes are widened at once, and those that are not of the row overwritten by the next one.
constexpr int64_t kWidened = 16;
static_assert(kWidened <= kStemSlack, "bytes that may be read behind a row");

// 16 bits a tap, for a tile: [pixels][rows][row_steps][2].
int64_t ScratchBytes(int64_t, int64_t steps) {
  return (kMostPixels * steps * kPair + kWidened) * int64_t{sizeof(int16_t)};
}

void WidenWindows(const StemRow& row, int64_t pixel, int64_t pixels) {
  auto* to = static_cast<int16_t*>(row.scratch);
  const int64_t rows = row.rows, row_taps = row.row_steps * kPair, row_step = row.row_step;
  for (int64_t i = 0; i < pixels; ++i) {
    const uint8_t* from = row.input + (pixel + i) * row.pixel_step;
    for (int64_t r = 0; r < rows; ++r, from += row_step, to += row_taps) {
      for (int64_t k = 0; k < row_taps; k += kWidened) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), _mm256_cvtepu8_epi16(bytes));
      }
    }
  }
}

// ---- Step 4 of stem.h for 8 sums: codes less the zero point ----

inline __m256i FloatCodes(const Requantization& to, __m256i sums, int64_t channel) {
  const __m256 low = _mm256_set1_ps(static_cast<float>(to.low_code - to.zero_point));
  const __m256 high = _mm256_set1_ps(static_cast<float>(to.high_code - to.zero_point));
  const __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(to.multiplier + channel));
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high));  // halves to even
}

inline __m256i Load(const int32_t* values) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)); }

// As FixedPointCode. The product with m is one of 64 bits, of the even lanes and of the odd ones. Its bits 31 to 62 are
// in the low half after a shift by 31 to the right, and in the high half after one by 1 to the left.
inline __m256i FixedPointCodes(const Requantization& to, __m256i sums, int64_t channel) {
  const __m256i mantissa = Load(to.mantissa + channel), half = _mm256_set1_epi64x(int64_t{1} << 30);
  const __m256i shifted = _mm256_sllv_epi32(sums, Load(to.left_shift + channel));
  const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(shifted, mantissa), half);
  const __m256i odd =
      _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(shifted, 32), _mm256_srli_epi64(mantissa, 32)), half);
  const __m256i rounded = _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xaa);
  const __m256i one = _mm256_set1_epi32(1), right = Load(to.right_shift + channel);
  const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, right), one);
  // A comparison is -1 where it holds.
  const __m256i rest_half = _mm256_sub_epi32(_mm256_srli_epi32(mask, 1), _mm256_srai_epi32(rounded, 31));
  const __m256i up = _mm256_cmpgt_epi32(_mm256_and_si256(rounded, mask), rest_half);
  const __m256i nearest = _mm256_sub_epi32(_mm256_srav_epi32(rounded, right), up);
  const __m256i low = _mm256_set1_epi32(to.low_code - to.zero_point);
  return _mm256_min_epi32(_mm256_max_epi32(nearest, low), _mm256_set1_epi32(to.high_code - to.zero_point));
}

inline void StoreCodes(const Requantization& to, const __m256i* sums, int64_t channel, int8_t* codes) {
  __m256i whole[kVectors];
  for (int z = 0; z < kVectors; ++z) {
    const int64_t first = channel + z * kLanes;
    const bool is_float = to.arithmetic == Arithmetic::kFloat;
    const __m256i codes_less_zero = is_float ? FloatCodes(to, sums[z], first) : FixedPointCodes(to, sums[z], first);
    whole[z] = _mm256_add_epi32(codes_less_zero, _mm256_set1_epi32(to.zero_point));
  }
  // Packing takes fours of the two in turn.
  const __m256i in_fours = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xd8);
  const __m128i low = _mm256_castsi256_si128(in_fours), high = _mm256_extracti128_si256(in_fours, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm_packs_epi16(low, high));
}

template <int kPixels>
__attribute__((always_inline)) inline void Tile(const StemRow& row, int64_t pixel, int64_t block) {
  const int64_t steps = row.rows * row.row_steps;
  const auto* weights = static_cast<const int16_t*>(row.weights) + block * steps * kStepWords;
  const auto* taps = static_cast<const int16_t*>(row.scratch);
  __m256i sum[kPixels][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      sum[i][z] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.base + block * kStemBlock + z * kLanes));
    }
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < steps; ++k, taps += kPair, weights += kStepWords) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 2 * kLanes));
#pragma GCC unroll 4
    for (int i = 0; i < kPixels; ++i) {
      int32_t both;
      std::memcpy(&both, taps + i * steps * kPair, sizeof(both));
      const __m256i its = _mm256_set1_epi32(both);
      sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(its, w0));
      sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(its, w1));
    }
  }
  for (int i = 0; i < kPixels; ++i) {
    StoreCodes(row.codes, sum[i], block * kStemBlock, row.output + ((pixel + i) * row.blocks + block) * kStemBlock);
  }
}

void Convolve(const StemRow& row) {
  int64_t i = 0;
  for (; i + kMostPixels <= row.pixels; i += kMostPixels) {
    WidenWindows(row, i, kMostPixels);
    for (int64_t block = 0; block < row.blocks; ++block) Tile<kMostPixels>(row, i, block);
  }
  for (; i < row.pixels; ++i) {
    WidenWindows(row, i, 1);
    for (int64_t block = 0; block < row.blocks; ++block) Tile<1>(row, i, block);
  }
}

}  // namespace

const StemKernel kStemAvx2 = {"avx2",         false,      PackedBytes, PackWeights,       ScratchBytes,
                              QuantizeValues, Interleave, Convolve,    PoolRow<SseBytes>, DequantizeCodes, kPair};

}  // namespace bnnedge
