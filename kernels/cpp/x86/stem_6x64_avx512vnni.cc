// Up to 6 pixels x 64 output channels, AVX-512 with VNNI. A lane is an output channel: a step broadcasts four bytes of
// the image and multiplies them by four of each channel's filter. The sums have 32 bits and never saturate.
// Registers at 6 x 64: 24 sums, 4 filter vectors, 1 for the image.
#include "stem_avx512.h"

namespace bnnedge {
namespace {

constexpr int kMostPixels = 6, kMostVectors = 4;
constexpr int64_t kVectorBytes = 64;

int64_t PackedBytes(const StemShape& shape) { return shape.blocks * shape.Steps() * kVectorBytes; }

void PackWeights(const int8_t* filter, const StemShape& shape, void* packed) {
  PackByStep(filter, shape, shape.Steps(), packed);
}

template <int kPixels, int kVectors, typename ToCodes>
__attribute__((always_inline)) inline void Tile(const StemRow& row, const ToCodes& codes, int64_t pixel,
                                                int64_t block) {
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
    const uint8_t* at[2] = {input, input + 3 * step};  // pointers to every third pixel
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
      const __m128i code = codes.For((block + z) * kStemBlock).Of(sum[i][z]);
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

constexpr StemKernel kStemAvx512Vnni = [] {
  StemKernel kernel;
  kernel.name = "avx512_vnni";
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.quantize = QuantizeValues;
  kernel.interleave = Interleave;
  kernel.convolve = Convolve;
  kernel.pool = PoolRow<Avx512Bytes, SseBytes>;
  kernel.dequantize = DequantizeCodes;
  return kernel;
}();

}  // namespace bnnedge
