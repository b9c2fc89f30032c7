// The int8 stem in plain C++, one pixel x 16 output channels at a time.
#include "stem_scalar.h"

namespace bnnedge {
namespace {

int64_t PackedBytes(const StemShape& shape) { return shape.blocks * shape.Steps() * kStemTaps * kStemBlock; }

// Packs to [blocks][4 * Steps()][16].
void PackWeights(const int8_t* filter, const StemShape& shape, void* packed) {
  const int64_t taps = kStemTaps * shape.Steps();
  int8_t* to = static_cast<int8_t*>(packed);
  for (int64_t b = 0; b < shape.blocks; ++b) {
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t c = 0; c < kStemBlock; ++c) *to++ = filter[(b * kStemBlock + c) * taps + k];
    }
  }
}

// Adds modulo 2^32.
int32_t Plus(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }

void Convolve(const StemRow& row) {
  const int64_t row_taps = kStemTaps * row.row_steps;
  for (int64_t i = 0; i < row.pixels; ++i) {
    const int8_t* weights = static_cast<const int8_t*>(row.weights);
    for (int64_t b = 0; b < row.blocks; ++b) {
      int32_t sums[kStemBlock];
      std::copy(row.base + b * kStemBlock, row.base + (b + 1) * kStemBlock, sums);
      for (int64_t r = 0; r < row.rows; ++r) {
        const uint8_t* const input = row.input + i * row.pixel_step + r * row.row_step;
        for (int64_t k = 0; k < row_taps; ++k, weights += kStemBlock) {
          for (int64_t c = 0; c < kStemBlock; ++c) sums[c] = Plus(sums[c], int32_t{input[k]} * weights[c]);
        }
      }
      RequantizeBlock(row.codes, sums, b * kStemBlock, row.output + (i * row.blocks + b) * kStemBlock);
    }
  }
}

}  // namespace

constexpr StemKernel kStemPortable = [] {
  StemKernel kernel;
  kernel.name = "portable";
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.quantize = QuantizeValues;
  kernel.interleave = InterleavePlanes;
  kernel.convolve = Convolve;
  kernel.pool = PoolRow<ScalarBytes>;
  kernel.dequantize = DequantizeCodes;
  return kernel;
}();

}  // namespace bnnedge
