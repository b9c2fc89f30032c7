// Up to 3 pixels x 16 output channels, AVX2. Its only product of bytes saturates, so both factors are widened to 16
// bits: of the four bytes that a step broadcasts, the even and the odd ones, as the filter's are stored.
// Registers at 3 x 16: 6 sums, 4 filter vectors, 2 for the image, 2 temporaries.
#include "stem_interleave.h"

namespace bnnedge {
namespace {

constexpr int kMostPixels = 3, kVectors = 2;
constexpr int64_t kLanes = 8, kStepWords = kStemBlock * kStemTaps;

int64_t PackedBytes(int64_t blocks, int64_t steps) { return blocks * steps * kStepWords * int64_t{sizeof(int16_t)}; }

// int16 [blocks][steps][vectors][even, odd][8][2]
void PackWeights(const int8_t* filter, int64_t blocks, int64_t steps, void* packed) {
  int16_t* to = static_cast<int16_t*>(packed);
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t k = 0; k < steps; ++k) {
      for (int64_t i = 0; i < kStepWords; ++i) {
        const int64_t vector = i / (4 * kLanes), odd = i / (2 * kLanes) % 2, lane = i / 2 % kLanes, pair = i % 2;
        const int64_t channel = b * kStemBlock + vector * kLanes + lane;
        *to++ = filter[(channel * steps + k) * kStemTaps + 2 * pair + odd];
      }
    }
  }
}

template <int kPixels>
__attribute__((always_inline)) inline void Tile(const StemRow& row, int64_t pixel, int64_t block) {
  const auto* weights = static_cast<const int16_t*>(row.weights) + block * row.rows * row.row_steps * kStepWords;
  __m256i sum[kPixels][kVectors];
#pragma GCC unroll 3
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      sum[i][z] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.base + block * kStemBlock + z * kLanes));
    }
  }
  const uint8_t* input = row.input + pixel * row.pixel_step;
  const __m256i even_bytes = _mm256_set1_epi16(0xff);
  for (int64_t r = 0; r < row.rows; ++r, input += row.row_step) {
    for (int64_t k = 0; k < row.row_steps; ++k, weights += kStepWords) {
      __m256i w[kVectors][2];
#pragma GCC unroll 2
      for (int z = 0; z < kVectors; ++z) {
        w[z][0] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 4 * kLanes * z));
        w[z][1] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 4 * kLanes * z + 2 * kLanes));
      }
#pragma GCC unroll 3
      for (int i = 0; i < kPixels; ++i) {
        int32_t taps;
        std::memcpy(&taps, input + i * row.pixel_step + k * kStemTaps, sizeof(taps));
        const __m256i bytes = _mm256_set1_epi32(taps);
        const __m256i even = _mm256_and_si256(bytes, even_bytes), odd = _mm256_srli_epi16(bytes, 8);
#pragma GCC unroll 2
        for (int z = 0; z < kVectors; ++z) {
          sum[i][z] = _mm256_add_epi32(sum[i][z], _mm256_madd_epi16(even, w[z][0]));
          sum[i][z] = _mm256_add_epi32(sum[i][z], _mm256_madd_epi16(odd, w[z][1]));
        }
      }
    }
  }
  alignas(32) int32_t sums[kPixels][kStemBlock];
#pragma GCC unroll 3
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 2
    for (int z = 0; z < kVectors; ++z) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[i] + z * kLanes), sum[i][z]);
    }
  }
  for (int i = 0; i < kPixels; ++i) {
    int8_t* const to = row.output + ((pixel + i) * row.blocks + block) * kStemBlock;
    RequantizeBlock(row.codes, sums[i], block * kStemBlock, to);
  }
}

void Convolve(const StemRow& row) {
  for (int64_t block = 0; block < row.blocks; ++block) {
    int64_t i = 0;
    for (; i + kMostPixels <= row.pixels; i += kMostPixels) Tile<kMostPixels>(row, i, block);
    for (; i < row.pixels; ++i) Tile<1>(row, i, block);
  }
}

}  // namespace

const StemKernel kStemAvx2 = {"avx2",         false,      PackedBytes, PackWeights,       nullptr,
                              QuantizeValues, Interleave, Convolve,    PoolRow<SseBytes>, DequantizeCodes};

}  // namespace bnnedge
