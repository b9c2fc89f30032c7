// Up to 4 pixels x 16 output channels, NEON with the dot product of signed bytes, so that the image's codes are signed.
// A lane is an output channel; a step broadcasts four bytes of the image to all lanes.
#include "stem_neon.h"

namespace bnnedge {
namespace {

constexpr int kMostPixels = 4, kVectors = 4;
constexpr int64_t kStepBytes = kStemBlock * kStemTaps;

int64_t PackedBytes(const StemShape& shape) { return shape.blocks * shape.Steps() * kStepBytes; }

// Packs to [blocks][Steps()][16][4].
void PackWeights(const int8_t* filter, const StemShape& shape, void* packed) {
  const int64_t steps = shape.Steps();
  int8_t* to = static_cast<int8_t*>(packed);
  for (int64_t b = 0; b < shape.blocks; ++b) {
    for (int64_t k = 0; k < steps; ++k) {
      for (int64_t c = 0; c < kStemBlock; ++c, to += kStemTaps) {
        std::memcpy(to, filter + ((b * kStemBlock + c) * steps + k) * kStemTaps, kStemTaps);
      }
    }
  }
}

void QuantizeSigned(const float* values, int64_t count, Arithmetic arithmetic, const Quantization& codes,
                    uint8_t* bytes) {
  QuantizeValues(values, count, arithmetic, codes, bytes);
  for (int64_t i = 0; i < count; ++i) bytes[i] ^= 0x80;
}

template <int kPixels>
__attribute__((always_inline)) inline void Tile(const StemRow& row, int64_t pixel, int64_t block) {
  const int8_t* weights = static_cast<const int8_t*>(row.weights) + block * row.Steps() * kStepBytes;
  int32x4_t sum[kPixels][kVectors];
  for (int i = 0; i < kPixels; ++i) {
    for (int z = 0; z < kVectors; ++z) sum[i][z] = vld1q_s32(row.base + block * kStemBlock + 4 * z);
  }
  const uint8_t* input = row.input + pixel * row.pixel_step;
  for (int64_t r = 0; r < row.rows; ++r, input += row.row_step) {
    for (int64_t k = 0; k < row.row_steps; ++k, weights += kStepBytes) {
      int8x16_t w[kVectors];
      for (int z = 0; z < kVectors; ++z) w[z] = vld1q_s8(weights + 16 * z);
      for (int i = 0; i < kPixels; ++i) {
        int32_t taps;
        std::memcpy(&taps, input + i * row.pixel_step + k * kStemTaps, sizeof(taps));
        const int8x16_t bytes = vreinterpretq_s8_s32(vdupq_n_s32(taps));
        for (int z = 0; z < kVectors; ++z) sum[i][z] = vdotq_s32(sum[i][z], w[z], bytes);
      }
    }
  }
  for (int i = 0; i < kPixels; ++i) {
    int32_t sums[kStemBlock];
    for (int z = 0; z < kVectors; ++z) vst1q_s32(sums + 4 * z, sum[i][z]);
    int8_t* const to = row.output + ((pixel + i) * row.blocks + block) * kStemBlock;
    RequantizeBlock(row.codes, sums, block * kStemBlock, to);
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

constexpr StemKernel kStemNeonDot = [] {
  StemKernel kernel;
  kernel.name = "neon_dot";
  kernel.signed_codes = true;
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.quantize = QuantizeSigned;
  kernel.interleave = InterleavePlanes;
  kernel.convolve = Convolve;
  kernel.pool = PoolRow<NeonBytes>;
  kernel.dequantize = DequantizeCodes;
  return kernel;
}();

}  // namespace bnnedge
