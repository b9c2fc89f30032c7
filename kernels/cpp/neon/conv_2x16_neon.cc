// The convolution for every AArch64 CPU: counters are bytes, which are widened before they can overflow.
#include "../portable/tail.h"
#include "conv_2x16.h"
#include "lanes_neon.h"

namespace bnnedge {
namespace {

#define ADD(n, ones) "add v" #n ".16b, v" #n ".16b, v" #ones ".16b\n"
#define SUBTRACT(n, ones) "sub v" #n ".16b, v" #n ".16b, v" #ones ".16b\n"

struct ByteCounter {
  using Counts = int8x16_t;

  // Additions and subtractions of at most 8 alternate, so that 15 of each stay within a signed byte.
  static constexpr int64_t kMaxPairs = 30;

  static Counts None() { return vdupq_n_s8(0); }

  template <bool kAdds>
  static void Count(uint8x16_t ones, Counts* counts) {
    const int8x16_t signed_ones = vreinterpretq_s8_u8(ones);
    *counts = kAdds ? vaddq_s8(*counts, signed_ones) : vsubq_s8(*counts, signed_ones);
  }

  static int32x4_t Sum(int32x4_t sum, Counts counts) { return vpadalq_s16(sum, vpaddlq_s8(counts)); }

  // Returns 2 * (sum + counts) + parity.
  static int32x4_t Total(int32x4_t sum, Counts counts, uint8x16_t parity) {
    int16x8_t pairs = vpaddlq_s8(counts);
    pairs = vpadalq_s8(vaddq_s16(pairs, pairs), vreinterpretq_s8_u8(parity));
    return vpadalq_s16(vaddq_s32(sum, sum), pairs);
  }

  static void Loop(const uint32_t* input0, const uint32_t* input1, const uint32_t* weights, int64_t pairs,
                   TileState<Counts, 2>* state) {
    BNNEDGE_TILE(ADD, SUBTRACT, "");
  }

  static void PeakLoop(int64_t rounds) { BNNEDGE_TILE_PEAK(ADD, SUBTRACT, ""); }
};

}  // namespace

constexpr ConvKernel kConvNeon = [] {
  ConvKernel kernel;
  kernel.name = "neon";
  kernel.block = kBlock;
  kernel.order = StripOrder::kRowsOutside;
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.scratch_bytes = ScratchBytes;
  kernel.run = Run<ByteCounter>;
  kernel.run_tail = RunTail<NeonLanes>;
  kernel.peak = Peak<ByteCounter>;
  return kernel;
}();

}  // namespace bnnedge
