// Up to 4 tiles x 16 output channels for every AArch64 CPU, which multiplies 16-bit integers: see stem_toom_cook.h. A
// lane is an output channel. One instruction multiplies four of them by one value of the image, a lane of its register.
// Registers at 4 x 16: 16 sums, 2 filter vectors, 4 for the image.
#include "../portable/stem_toom_cook.h"
#include "stem_neon.h"

namespace bnnedge {
namespace {

struct Neon {
  static constexpr int64_t kMostTiles = 4;
  static constexpr int kVectorBytes = 16, kVectors = 4;
  static constexpr int64_t kNeighbours = 1;
  static constexpr int kLanes = 4;

  // Multiplies the values of the image in lanes kLane to kEnd.
  template <int kLane, int kEnd, int64_t kTiles>
  __attribute__((always_inline)) static inline void MultiplyLanes(const int16x4_t* its, const int16_t* weights,
                                                                  int32x4_t (*sum)[kVectors]) {
    const int16x8_t w0 = vld1q_s16(weights), w1 = vld1q_s16(weights + 8);
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
      sum[t][0] = vmlal_lane_s16(sum[t][0], vget_low_s16(w0), its[t], kLane);
      sum[t][1] = vmlal_high_lane_s16(sum[t][1], w0, its[t], kLane);
      sum[t][2] = vmlal_lane_s16(sum[t][2], vget_low_s16(w1), its[t], kLane);
      sum[t][3] = vmlal_high_lane_s16(sum[t][3], w1, its[t], kLane);
    }
    if constexpr (kLane + 1 < kEnd) MultiplyLanes<kLane + 1, kEnd, kTiles>(its, weights + kStemBlock, sum);
  }

  template <int kCount, int64_t kTiles>
  __attribute__((always_inline)) static inline void MultiplyStep(const int16_t* input, int64_t tile_step,
                                                                 const int16_t* weights, int32x4_t (*sum)[kVectors]) {
    int16x4_t its[kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) its[t] = vld1_s16(input + t * tile_step);
    MultiplyLanes<0, kCount, kTiles>(its, weights, sum);
  }

  template <int64_t kTiles>
  static inline void Multiply(const int16_t* input, int64_t tile_step, const int16_t* weights, int64_t depth,
                              uint32_t (*products)[kStemBlock]) {
    int32x4_t sum[kTiles][kVectors];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = vdupq_n_s32(0);
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes, input += kLanes, weights += kLanes * kStemBlock) {
      MultiplyStep<kLanes, kTiles>(input, tile_step, weights, sum);
    }
    if (k < depth) MultiplyStep<kDepthUnit, kTiles>(input, tile_step, weights, sum);
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 4
      for (int z = 0; z < kVectors; ++z) vst1q_u32(products[t] + z * kLanes, vreinterpretq_u32_s32(sum[t][z]));
    }
  }

  static void Widen(const uint8_t* from, uint16_t* to) {
    const uint8x16_t bytes = vld1q_u8(from);
    vst1q_u16(to, vmovl_u8(vget_low_u8(bytes)));
    vst1q_u16(to + 8, vmovl_high_u8(bytes));
  }

  template <Arithmetic>
  struct Codes {
    const Requantization& to;
    const int64_t channel;

    Codes(const Requantization& its, int64_t first) : to(its), channel(first) {}

    template <typename Sums>
    void Store(const Sums* sums, int8_t* codes) const {
      int32_t values[kStemBlock];
      std::memcpy(values, sums, sizeof(values));
      RequantizeBlock(to, values, channel, codes);
    }
  };
};

}  // namespace

constexpr StemKernel kStemNeon = [] {
  StemKernel kernel;
  kernel.name = "neon";
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights<Neon::kNeighbours>;
  kernel.scratch_bytes = ScratchBytes;
  kernel.quantize = QuantizeValues;
  kernel.interleave = InterleavePlanes;
  kernel.convolve = Convolve<Neon>;
  kernel.pool = PoolRow<NeonBytes>;
  kernel.dequantize = DequantizeCodes;
  kernel.step_taps = 1;
  return kernel;
}();

}  // namespace bnnedge
