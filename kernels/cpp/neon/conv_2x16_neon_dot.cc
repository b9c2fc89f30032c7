// The convolution for CPUs with dot products, compiled with +dotprod; select.cc offers it only where the CPU has the
// instructions. A dot product with +-1 adds the four byte counts of a lane to 32 bits, so that nothing has to be
// widened.
#include "../portable/tail.h"
#include "conv_2x16.h"
#include "lanes_neon.h"

namespace bnnedge {
namespace {

#define ADD(n, ones) "sdot v" #n ".4s, v" #ones ".16b, v30.4b[0]\n"
#define SUBTRACT(n, ones) "sdot v" #n ".4s, v" #ones ".16b, v30.4b[1]\n"
// Four times 2 and four times -2, because each carry counts twice.
#define CONSTANTS "movi v30.8b, #2\nmovi v31.8b, #254\nzip1 v30.2s, v30.2s, v31.2s\n"

struct DotCounter {
  using Counts = int32x4_t;

  static constexpr int64_t kMaxPairs = int64_t{1} << 40;

  static Counts None() { return vdupq_n_s32(0); }

  template <bool kAdds>
  static void Count(uint8x16_t ones, Counts* counts) {
    *counts = vdotq_s32(*counts, vreinterpretq_s8_u8(ones), vdupq_n_s8(kAdds ? 2 : -2));
  }

  // This is never called, as there is one chunk.
  static int32x4_t Sum(int32x4_t sum, Counts) { return sum; }

  // Returns 2 * sum + counts + parity; the counts are doubled already.
  static int32x4_t Total(int32x4_t sum, Counts counts, uint8x16_t parity) {
    return vaddq_s32(vaddq_s32(sum, sum), vdotq_s32(counts, vreinterpretq_s8_u8(parity), vdupq_n_s8(1)));
  }

  static void Loop(const uint32_t* input0, const uint32_t* input1, const uint32_t* weights, int64_t pairs,
                   TileState<Counts, 2>* state) {
    BNNEDGE_TILE(ADD, SUBTRACT, CONSTANTS);
  }

  static void PeakLoop(int64_t rounds) { BNNEDGE_TILE_PEAK(ADD, SUBTRACT, CONSTANTS); }
};

}  // namespace

constexpr ConvKernel kConvNeonDot = [] {
  ConvKernel kernel;
  kernel.name = "neon_dot";
  kernel.block = kBlock;
  kernel.order = StripOrder::kRowsOutside;
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.scratch_bytes = ScratchBytes;
  kernel.run = Run<DotCounter>;
  kernel.run_tail = RunTail<NeonLanes>;
  kernel.peak = Peak<DotCounter>;
  return kernel;
}();

}  // namespace bnnedge
