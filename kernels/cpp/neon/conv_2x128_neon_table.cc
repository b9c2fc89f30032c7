// 2 pixels x 128 output channels by table, for cores whose look-ups are as fast as additions; HasFastTables knows them.
//   1. As in x86/count_avx2.h, but with tables of 32 entries in two registers: for five bits a of a pixel, the table
//      t[w] = popcount(a ^ w) turns the channels' five weight bits into counts of 0 to 5, one byte a channel.
//   2. Two pixels share a look-up: t[w] = popcount(a ^ w) + 16 popcount(b ^ w). Three such bytes add up without
//      overflow (at most 15 in either half) to a sum x.
//   3. Two totals of the sums x are kept modulo 256:
//        T = sum of x        H = sum of (x >> 4): the second pixel's counts
//      After at most 17 sums, H and the first pixel's counts L fit a byte, and L = T - 16 H modulo 256. After 16 sums
//      both are widened.
//
// So 15 bits of 2 pixels x 16 channels cost three look-ups, three additions and a shift-and-add. The two registers of a
// table take two loads from the 1 KiB of tables of the first pixel, two loads for the second and two additions, once
// for 128 channels. K is one run of bits, filled up with zeros in image and filter, whose look-ups give 0. A row of
// pixel pairs becomes a panel of offsets into the tables, which is made once for all blocks, and K is cut into chunks
// whose weights stay in the first-level cache for all pairs of the row.
//
// The kernel of conv_2x16.h runs blocks of few channels, and those whose counts do not fit 16 bits.
#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#include "../portable/tail.h"
#include "bnnedge/aligned.h"
#include "bnnedge/conv_kernel.h"
#include "lanes_neon.h"
#include "store_neon.h"

namespace bnnedge {
namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kFewChannels = 96;
constexpr int64_t kLookupBits = 5;
constexpr int64_t kEntries = 1 << kLookupBits;
constexpr int64_t kSum = 3;  // look-ups of a sum x
constexpr int64_t kFlushSums = 16;
constexpr int64_t kChunkSums = 3 * kFlushSums;  // 18 KiB of weights
constexpr int64_t kSumBytes = kSum * kBlock;    // weights of a sum
constexpr int64_t kByteVectors = kBlock / 16;

// [pixel][bits][entry]
struct Tables {
  alignas(64) uint8_t entry[2][kEntries][kEntries];
  constexpr Tables() : entry() {
    for (int bits = 0; bits < kEntries; ++bits) {
      for (int w = 0; w < kEntries; ++w) {
        int ones = 0;
        for (int differ = bits ^ w; differ != 0; differ >>= 1) ones += differ & 1;
        entry[0][bits][w] = static_cast<uint8_t>(ones);
        entry[1][bits][w] = static_cast<uint8_t>(16 * ones);
      }
    }
  }
};
constexpr Tables kTables;

inline bool TakesTables(int64_t channels, int64_t k_words) {
  return channels > kFewChannels && k_words * kWordBits <= UINT16_MAX;
}
inline int64_t Sums(int64_t k_words) { return (k_words * kWordBits + kSum * kLookupBits - 1) / (kSum * kLookupBits); }

// ---- Weights ----

// [sums][2 halves of the block][second, first, third look-up][64 channels], five bits a byte. One sum more follows, as
// the loop loads one ahead.

constexpr int64_t kOrder[kSum] = {1, 0, 2};

int64_t PackedBytes(int64_t channels, int64_t k_words) {
  if (!TakesTables(channels, k_words)) return kConvNeon.packed_bytes(channels, k_words);
  return (Sums(k_words) + 1) * kSumBytes;
}

void PackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  if (!TakesTables(channels, k_words)) {
    kConvNeon.pack_weights(filter, channels, k_words, packed);
    return;
  }
  uint8_t* to = static_cast<uint8_t*>(packed);
  std::memset(to, 0, static_cast<size_t>(PackedBytes(channels, k_words)));
  constexpr int64_t kHalf = kBlock / 2;
  for (int64_t sum = 0; sum < Sums(k_words); ++sum, to += kSumBytes) {
    for (int64_t c = 0; c < channels; ++c) {
      const uint32_t* row = filter + c * k_words;
      for (int64_t i = 0; i < kSum; ++i) {
        const int64_t bit = (kSum * sum + kOrder[i]) * kLookupBits, word = bit / kWordBits;
        if (word >= k_words) continue;
        const uint64_t words = row[word] | (word + 1 < k_words ? static_cast<uint64_t>(row[word + 1]) << 32 : 0);
        to[c / kHalf * kSum * kHalf + i * kHalf + c % kHalf] =
            static_cast<uint8_t>(words >> (bit % kWordBits) & (kEntries - 1));
      }
    }
  }
}

// ---- Scratch: whether the panel and the prefixes are made, the panel, the popcounts, and the scratch of conv_2x16.h
// ----

// The panel is [pairs][look-ups][pixel], offsets into kTables for either pixel. The loop reads one sum ahead, and eight
// offsets are made at once, so that there are more than K needs; the others look up zeros.
int64_t PanelLookups(int64_t k_words) { return RoundUp((Sums(k_words) + 1) * kSum, 8); }

struct Scratch {
  bool* made_panel;
  bool* made_prefixes;
  uint16_t* panel;
  uint16_t* popcounts;  // [pixels, rounded up to even][kBlock]
  uint8_t* bits;        // [2 pixels][BitBytes]
  void* prefixes;       // of kConvNeon
  int64_t bytes;

  static int64_t BitBytes(int64_t k_words) { return Aligned(PanelLookups(k_words) / 8 * kLookupBits + 8); }

  Scratch(void* memory, int64_t pixels, int64_t k_words) {
    unsigned char* start = static_cast<unsigned char*>(memory);
    const int64_t pairs = (pixels + 1) / 2;
    made_panel = reinterpret_cast<bool*>(start);
    made_prefixes = made_panel + 1;
    int64_t at = 64;
    panel = reinterpret_cast<uint16_t*>(start + at);
    at += Aligned(pairs * PanelLookups(k_words) * 2 * static_cast<int64_t>(sizeof(uint16_t)));
    popcounts = reinterpret_cast<uint16_t*>(start + at);
    at += 2 * pairs * kBlock * static_cast<int64_t>(sizeof(uint16_t));
    bits = start + at;
    at += 2 * BitBytes(k_words);
    prefixes = start + at;
    bytes = at + kConvNeon.scratch_bytes(pixels, k_words);
  }
};

int64_t ScratchBytes(int64_t pixels, int64_t k_words) { return Scratch(nullptr, pixels, k_words).bytes; }

// Copies a pixel's window to one run of bits, followed by zeros.
void Gather(const ConvStrip& strip, int64_t pixel, uint8_t* bits) {
  uint8_t* const end = bits + Scratch::BitBytes(strip.k_words);
  const uint32_t* first = strip.input + pixel * strip.pixel_step;
  for (int64_t r = 0; r < strip.run_count; ++r) {
    const size_t bytes = static_cast<size_t>(strip.runs[r].words) * 4;
    std::memcpy(bits, first + strip.runs[r].offset, bytes);
    bits += bytes;
  }
  std::fill(bits, end, uint8_t{0});
}

// The offsets of the eight look-ups of 40 bits. The five bits of each lie within two bytes; a shift moves them up by
// five bits, as a table has 32 entries.
inline uint16x8_t Offsets(const uint8_t* bits) {
  static constexpr uint8_t kBytes[16] = {0, 1, 0, 1, 1, 2, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5};
  static constexpr int16_t kShift[8] = {5, 0, 3, -2, 1, 4, -1, 2};
  static_assert(kEntries == 32, "the shifts");
  const uint8x16_t bytes = vcombine_u8(vld1_u8(bits), vdup_n_u8(0));
  const uint16x8_t fields = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, vld1q_u8(kBytes)));
  return vandq_u16(vshlq_u16(fields, vld1q_s16(kShift)), vdupq_n_u16((kEntries - 1) * kEntries));
}

void MakePanel(const ConvStrip& strip, const Scratch& scratch) {
  const int64_t lookups = PanelLookups(strip.k_words);
  uint8_t* first = scratch.bits;
  uint8_t* second = first + Scratch::BitBytes(strip.k_words);
  uint16_t* out = scratch.panel;
  for (int64_t pixel = 0; pixel < strip.pixels; pixel += 2) {
    Gather(strip, pixel, first);
    Gather(strip, std::min(pixel + 1, strip.pixels - 1), second);
    for (int64_t i = 0; i < lookups; i += 8, out += 16) {
      const uint16x8x2_t offsets = {{Offsets(first + i / 8 * kLookupBits), Offsets(second + i / 8 * kLookupBits)}};
      vst2q_u16(out, offsets);
    }
  }
}

// ---- Counting ----

struct Totals {
  uint8x16_t t[kByteVectors], h[kByteVectors];
};

// The loop is in assembly for in-order cores: four vectors at a time, operations of one kind together, with loads
// between them. Registers: 0-7 T, 8-15 H, 16-21 the tables of the three look-ups, 22-29 weights, counts and sums, 30
// and 31 the second pixel's part of a table. The tables of the next sum replace those that are not needed any more.
// clang-format off
#define BNNEDGE_LOOK_UP(v, low, high) "tbl v" #v ".16b, {v" #low ".16b, v" #high ".16b}, v" #v ".16b\n"
#define BNNEDGE_ADD(to, more) "add v" #to ".16b, v" #to ".16b, v" #more ".16b\n"
#define BNNEDGE_ADD_HIGH(to, more) "usra v" #to ".16b, v" #more ".16b, #4\n"
#define BNNEDGE_WEIGHT(v, at, more) "ldr q" #v ", [%[weights], #(" #at "+" #more ")]\n"

// Makes the table of one look-up, in six parts. `at` is where its offsets are, from the panel's position.
#define BNNEDGE_TABLE_1(low, high, at) "ldrh %w[a], [%[panel], #" #at "]\n"
#define BNNEDGE_TABLE_2(low, high, at) "ldrh %w[b], [%[panel], #(" #at "+2)]\n"
#define BNNEDGE_TABLE_3(low, high, at) "ldr q" #low ", [%[first], %[a]]\n"
#define BNNEDGE_TABLE_4(low, high, at) "ldr q" #high ", [%[first_high], %[a]]\n"
#define BNNEDGE_TABLE_5(low, high, at) "ldr q30, [%[second], %[b]]\nldr q31, [%[second_high], %[b]]\n"
#define BNNEDGE_TABLE_6(low, high, at) BNNEDGE_ADD(low, 30) BNNEDGE_ADD(high, 31)
#define BNNEDGE_KEEP_1(low, high, at) ""
#define BNNEDGE_KEEP_2(low, high, at) ""
#define BNNEDGE_KEEP_3(low, high, at) ""
#define BNNEDGE_KEEP_4(low, high, at) ""
#define BNNEDGE_KEEP_5(low, high, at) ""
#define BNNEDGE_KEEP_6(low, high, at) ""

// One sum of one half of the block. `third` is where the weights of its third look-up are, `next` those of the half
// that follows.
#define BNNEDGE_HALF(t0, t1, t2, t3, h0, h1, h2, h3, third, next, TABLE)  \
  BNNEDGE_LOOK_UP(26, 18, 19)                                             \
  BNNEDGE_LOOK_UP(27, 18, 19)                                             \
  BNNEDGE_LOOK_UP(28, 18, 19)                                             \
  BNNEDGE_LOOK_UP(29, 18, 19)                                             \
  BNNEDGE_LOOK_UP(22, 16, 17) TABLE##_1(18, 19, 4)                        \
  BNNEDGE_LOOK_UP(23, 16, 17) TABLE##_2(18, 19, 4)                        \
  BNNEDGE_LOOK_UP(24, 16, 17) TABLE##_3(18, 19, 4)                        \
  BNNEDGE_LOOK_UP(25, 16, 17) TABLE##_4(18, 19, 4) TABLE##_5(18, 19, 4)   \
  BNNEDGE_ADD(22, 26) BNNEDGE_WEIGHT(26, third, 0)                        \
  BNNEDGE_ADD(23, 27) BNNEDGE_WEIGHT(27, third, 16)                       \
  BNNEDGE_ADD(24, 28) BNNEDGE_WEIGHT(28, third, 32)                       \
  BNNEDGE_ADD(25, 29) BNNEDGE_WEIGHT(29, third, 48)                       \
  TABLE##_6(18, 19, 4)                                                    \
  BNNEDGE_LOOK_UP(26, 20, 21) TABLE##_1(16, 17, 0)                        \
  BNNEDGE_LOOK_UP(27, 20, 21) TABLE##_2(16, 17, 0)                        \
  BNNEDGE_LOOK_UP(28, 20, 21) TABLE##_3(16, 17, 0)                        \
  BNNEDGE_LOOK_UP(29, 20, 21) TABLE##_4(16, 17, 0) TABLE##_5(16, 17, 0)   \
  BNNEDGE_ADD(22, 26) BNNEDGE_WEIGHT(26, next, 0)                         \
  BNNEDGE_ADD(23, 27) BNNEDGE_WEIGHT(27, next, 16)                        \
  BNNEDGE_ADD(24, 28) BNNEDGE_WEIGHT(28, next, 32)                        \
  BNNEDGE_ADD(25, 29) BNNEDGE_WEIGHT(29, next, 48)                        \
  TABLE##_6(16, 17, 0)                                                    \
  BNNEDGE_ADD(t0, 22) TABLE##_1(20, 21, 8)                                \
  BNNEDGE_ADD(t1, 23) TABLE##_2(20, 21, 8)                                \
  BNNEDGE_ADD(t2, 24) TABLE##_3(20, 21, 8)                                \
  BNNEDGE_ADD(t3, 25) TABLE##_4(20, 21, 8) TABLE##_5(20, 21, 8)           \
  BNNEDGE_ADD_HIGH(h0, 22) BNNEDGE_WEIGHT(22, next, 64)                   \
  BNNEDGE_ADD_HIGH(h1, 23) BNNEDGE_WEIGHT(23, next, 80)                   \
  BNNEDGE_ADD_HIGH(h2, 24) BNNEDGE_WEIGHT(24, next, 96)                   \
  BNNEDGE_ADD_HIGH(h3, 25) BNNEDGE_WEIGHT(25, next, 112)                  \
  TABLE##_6(20, 21, 8)

#define BNNEDGE_ALL(TABLE, low, high, at)                                                                \
  TABLE##_1(low, high, at) TABLE##_2(low, high, at) TABLE##_3(low, high, at) TABLE##_4(low, high, at)    \
  TABLE##_5(low, high, at) TABLE##_6(low, high, at)
#define BNNEDGE_ZERO(n) "movi v" #n ".4s, #0\n"

// Adds `sums` sums, 1 to kFlushSums, to totals that start at 0.
inline void CountSums(const uint16_t* panel, const uint8_t* weights, int64_t sums, Totals* totals) {
  static_assert(kSumBytes == 384 && kOrder[0] == 1 && kOrder[1] == 0 && kOrder[2] == 2, "the offsets below");
  const uint8_t *first = kTables.entry[0][0], *second = kTables.entry[1][0];
  uint64_t a, b;
  asm volatile(BNNEDGE_ZERO(0) BNNEDGE_ZERO(1) BNNEDGE_ZERO(2) BNNEDGE_ZERO(3)
               BNNEDGE_ZERO(4) BNNEDGE_ZERO(5) BNNEDGE_ZERO(6) BNNEDGE_ZERO(7)
               BNNEDGE_ZERO(8) BNNEDGE_ZERO(9) BNNEDGE_ZERO(10) BNNEDGE_ZERO(11)
               BNNEDGE_ZERO(12) BNNEDGE_ZERO(13) BNNEDGE_ZERO(14) BNNEDGE_ZERO(15)
               BNNEDGE_WEIGHT(26, 0, 0) BNNEDGE_WEIGHT(27, 0, 16) BNNEDGE_WEIGHT(28, 0, 32) BNNEDGE_WEIGHT(29, 0, 48)
               BNNEDGE_WEIGHT(22, 0, 64) BNNEDGE_WEIGHT(23, 0, 80) BNNEDGE_WEIGHT(24, 0, 96) BNNEDGE_WEIGHT(25, 0, 112)
               BNNEDGE_ALL(BNNEDGE_TABLE, 16, 17, 0)
               BNNEDGE_ALL(BNNEDGE_TABLE, 18, 19, 4)
               BNNEDGE_ALL(BNNEDGE_TABLE, 20, 21, 8)
               "add %[panel], %[panel], #12\n"
               "1:\n"
               BNNEDGE_HALF(0, 1, 2, 3, 8, 9, 10, 11, 128, 192, BNNEDGE_KEEP)
               BNNEDGE_HALF(4, 5, 6, 7, 12, 13, 14, 15, 320, 384, BNNEDGE_TABLE)
               "add %[weights], %[weights], #384\n"
               "add %[panel], %[panel], #12\n"
               "subs %[sums], %[sums], #1\n"
               "b.ne 1b\n"
               "stp q0, q1, [%[totals]]\n"
               "stp q2, q3, [%[totals], #32]\n"
               "stp q4, q5, [%[totals], #64]\n"
               "stp q6, q7, [%[totals], #96]\n"
               "stp q8, q9, [%[totals], #128]\n"
               "stp q10, q11, [%[totals], #160]\n"
               "stp q12, q13, [%[totals], #192]\n"
               "stp q14, q15, [%[totals], #224]\n"
               : [panel] "+r"(panel), [weights] "+r"(weights), [sums] "+r"(sums), [a] "=&r"(a), [b] "=&r"(b)
               : [first] "r"(first), [first_high] "r"(first + 16), [second] "r"(second), [second_high] "r"(second + 16),
                 [totals] "r"(totals)
               : "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13",
                 "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
                 "v29", "v30", "v31");
}
// clang-format on

inline void AddTo(uint16_t* counts, uint8x16_t more) {
  vst1q_u16(counts, vaddw_u8(vld1q_u16(counts), vget_low_u8(more)));
  vst1q_u16(counts + 8, vaddw_high_u8(vld1q_u16(counts + 8), more));
}

// Adds the popcounts of `sums` sums of a pair to p, [2 pixels][kBlock].
void CountPair(const uint16_t* panel, const uint8_t* weights, int64_t sums, uint16_t* p) {
  const uint8x16_t sixteen = vdupq_n_u8(16);
  while (sums > 0) {
    const int64_t now = std::min(sums, kFlushSums);
    Totals totals;
    CountSums(panel, weights, now, &totals);
    for (int64_t v = 0; v < kByteVectors; ++v) {
      AddTo(p + 16 * v, vmlsq_u8(totals.t[v], totals.h[v], sixteen));
      AddTo(p + kBlock + 16 * v, totals.h[v]);
    }
    sums -= now;
    panel += now * kSum * 2;
    weights += now * kSumBytes;
  }
}

void CountRow(const ConvStrip& strip, const Scratch& scratch) {
  const uint8_t* weights = static_cast<const uint8_t*>(strip.weights);
  const int64_t pairs = (strip.pixels + 1) / 2, pair_step = PanelLookups(strip.k_words) * 2;
  const int64_t sums = Sums(strip.k_words);
  std::fill_n(scratch.popcounts, 2 * pairs * kBlock, uint16_t{0});
  for (int64_t first = 0; first < sums; first += kChunkSums) {
    const int64_t chunk = std::min(kChunkSums, sums - first);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      CountPair(scratch.panel + pair * pair_step + first * kSum * 2, weights + first * kSumBytes, chunk,
                scratch.popcounts + 2 * pair * kBlock);
    }
  }
}

// ---- The strip ----

template <OutputKind kKind, int kPixels>
void StoreGroup(const ConvStrip& strip, const Scratch& scratch, int64_t pixel, int64_t channel) {
  int32x4_t p[kPixels][kVectors];
  for (int i = 0; i < kPixels; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const uint16x4_t counts = vld1_u16(scratch.popcounts + (pixel + i) * kBlock + channel + 4 * v);
      p[i][v] = vreinterpretq_s32_u32(vmovl_u16(counts));
    }
  }
  Store<kKind, kPixels>(strip, pixel, channel, p);
}

template <OutputKind kKind>
void StoreRow(const ConvStrip& strip, const Scratch& scratch) {
  for (int64_t channel = 0; channel < strip.channels; channel += kGroup) {
    int64_t pixel = 0;
    for (; pixel + 2 <= strip.pixels; pixel += 2) StoreGroup<kKind, 2>(strip, scratch, pixel, channel);
    if (pixel < strip.pixels) StoreGroup<kKind, 1>(strip, scratch, pixel, channel);
  }
}

void Run(const ConvStrip& strip) {
  const Scratch scratch(strip.scratch, strip.pixels, strip.k_words);
  if (strip.new_input) *scratch.made_panel = *scratch.made_prefixes = false;
  if (!TakesTables(strip.channels, strip.k_words)) {
    ConvStrip other = strip;
    other.scratch = scratch.prefixes;
    other.new_input = !*scratch.made_prefixes;
    *scratch.made_prefixes = true;
    kConvNeon.run(other);
    return;
  }
  if (!*scratch.made_panel) MakePanel(strip, scratch);
  *scratch.made_panel = true;
  CountRow(strip, scratch);
  switch (strip.kind) {
    case OutputKind::kSums:
      return StoreRow<OutputKind::kSums>(strip, scratch);
    case OutputKind::kFloat:
      return StoreRow<OutputKind::kFloat>(strip, scratch);
    case OutputKind::kInt8:
      return StoreRow<OutputKind::kInt8>(strip, scratch);
    case OutputKind::kBits:
      return StoreRow<OutputKind::kBits>(strip, scratch);
  }
}

}  // namespace

constexpr ConvKernel kConvNeonTable = [] {
  ConvKernel kernel;
  kernel.name = "neon_table";
  kernel.block = kBlock;
  kernel.order = StripOrder::kRowsOutside;
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.scratch_bytes = ScratchBytes;
  kernel.run = Run;
  kernel.run_tail = RunTail<NeonLanes>;
  return kernel;
}();

}  // namespace bnnedge
