// 2 pixels x up to 64 output channels by table, for AVX2: pair_avx2.h makes the image, count_avx2.h counts,
// store_avx2.h stores.
#include "count_avx2.h"
#include "pair_avx2.h"
#include "store_avx2.h"

namespace bnnedge {
namespace {

void Run(const ConvStrip& strip) {
  const int64_t pixels = strip.rows * strip.pixels;
  uint16_t* const counts = static_cast<uint16_t*>(strip.scratch);
  int32_t* wide = nullptr;
  if (strip.k_words > kNarrowWords) wide = reinterpret_cast<int32_t*>(counts + CountedPixels(pixels) * kBlock);
  strip.channels <= kLanes ? CountStrip<1>(strip, counts, wide) : CountStrip<2>(strip, counts, wide);
  for (int64_t y = 0; y < strip.rows; ++y) {
    const int64_t first = y * strip.pixels;
    const ConvStrip row = RowOf(strip, y);
    wide == nullptr ? StoreRow(row, counts + first * kBlock, first) : StoreWideRow(row, wide + first * kBlock, first);
  }
}

// ---- The peak: the look-ups and additions of a group without loads ----

struct RegisterLookUps {
  __m256i table;
  Bytes weights;

  template <int kNibble>
  BNNEDGE_INLINE Bytes At() {
    BNNEDGE_PIN(table);  // otherwise compilers make one shuffle of all
    return {_mm256_shuffle_epi8(table, weights.first), _mm256_shuffle_epi8(table, weights.second)};
  }
};

int64_t Peak(int64_t rounds) {
  RegisterLookUps look_ups{_mm256_set1_epi8(16), {_mm256_setzero_si256(), _mm256_set1_epi8(1)}};
  BNNEDGE_PIN(look_ups.weights.first);  // otherwise compilers replace shuffles by known indices
  BNNEDGE_PIN(look_ups.weights.second);
  for (int64_t r = 0; r < rounds; ++r) {
    Totals<2> totals;
    Bytes high = AddSums<kGroupSums, 0>(&look_ups, &totals);
    BNNEDGE_PIN(high.first);
    BNNEDGE_PIN(high.second);
  }
  return rounds * kGroup * 4 * kBlock * 2;
}

}  // namespace

constexpr ConvKernel kConvAvx2 = [] {
  ConvKernel kernel;
  kernel.name = "avx2";
  kernel.block = kBlock;
  kernel.order = StripOrder::kBlocksOutside;
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.scratch_bytes = ScratchBytes;
  kernel.run = Run;
  kernel.run_tail = RunTail<Avx2Lanes>;
  kernel.fuses_tail = true;
  kernel.peak = Peak;
  kernel.pair_words = PairWords;
  kernel.strip_pixels = kStripPixels;
  return kernel;
}();

}  // namespace bnnedge
