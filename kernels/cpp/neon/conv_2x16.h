// The NEON convolution, 2 pixels x 16 output channels at a time; each 32-bit lane is one output channel. It is written
// once for several ways of counting, in an unnamed namespace: see portable/output_transform.h.
//
// Let x_k = a_k xor w_k be the products of word k = 1..n (bit 1: they differ).
//   1. The plain sum p = sum of popcount(x_k) takes an eor, a cnt and an add a word.
//   2. A carry-save adder takes two words at once: with s the parity so far, the new parity is s ^ x ^ x' and its
//      carry, worth 2, is the majority of s, x and x'. So p = 2 * sum of popcount(carry) + popcount(s_n).
//   3. The parity needs no running xor if both operands are stored as prefixes, A_k = a_1 ^ .. ^ a_k and W_k likewise:
//      s_k = A_k ^ W_k. And the majority of s_2j, x and x' is s_2j+1 ? ~s_2j+2 : s_2j, one bsl. The prefixes of the
//      weights are made once, those of a row of pixels once for all output channels.
//   4. The complement is free if every second W_2j is stored complemented, counted back from the last, t_2j = ~s_2j:
//        s_2j+1 ? t_2j+2 : t_2j  is the carry where t_2j = s_2j, and the complement of the carry where t_2j = ~s_2j.
//      The first is added, the second subtracted, and 32 is owed for each of the latter.
//   5. Steps 2 to 4 in one: p = 2 * (sum of +-popcount(bsl)) + popcount(s_n) + 64 * ceil(n / 4), in five operations a
//      pair of words. If n is odd, one more word repeats the prefix, which is a product of 0.
#pragma once

#include <arm_neon.h>

#include "bnnedge/conv_kernel.h"
#include "store_neon.h"
#include "tile_2x16.h"

namespace bnnedge {
namespace {

constexpr int64_t kBlock = 64;              // output channels of a strip
constexpr int64_t kStepWords = 2 * kGroup;  // words of weights for a pair of words
constexpr int64_t kSlackBytes = 64;         // the loop of a tile loads one half ahead

inline int64_t PairsOf(int64_t k_words) { return (k_words + 1) / 2; }
inline int64_t GroupsOf(int64_t channels) { return (channels + kGroup - 1) / kGroup; }

// ---- Preparation ----

// Packed weights are [groups of 16 channels][pairs][4 vectors][first, second prefix][4 channels]. The halves of pairs
// that are subtracted are swapped. Channels behind the last one have filters of 0.
inline int64_t PackedBytes(int64_t channels, int64_t k_words) {
  return GroupsOf(channels) * PairsOf(k_words) * kStepWords * 4 + kSlackBytes;
}

inline void PackWeights(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) {
  uint32_t* out = static_cast<uint32_t*>(packed);
  const int64_t pairs = PairsOf(k_words);
  for (int64_t c = 0; c < GroupsOf(channels) * kGroup; ++c) {
    const int64_t vector = c % kGroup / 4;
    uint32_t* group = out + c / kGroup * pairs * kStepWords + c % 4;
    const uint32_t* row = c < channels ? filter + c * k_words : nullptr;
    uint32_t prefix = 0;
    for (int64_t k = 0; k < 2 * pairs; ++k) {
      if (row != nullptr && k < k_words) prefix ^= row[k];
      const bool subtracted = (pairs - k / 2) % 2 == 1;
      const bool complemented = k % 2 == 1 && !subtracted;
      group[k / 2 * kStepWords + (subtracted ? vector ^ 2 : vector) * 8 + k % 2 * 4] = complemented ? ~prefix : prefix;
    }
  }
}

// Scratch is [pixels][words, rounded up to even][4], with each prefix four times, so that a plain load replaces a
// broadcast, which costs a vector operation on most cores.
inline int64_t ScratchBytes(int64_t pixels, int64_t k_words) { return pixels * PairsOf(k_words) * 32 + kSlackBytes; }

inline void MakePrefixes(const ConvStrip& strip) {
  uint32_t* out = static_cast<uint32_t*>(strip.scratch);
  for (int64_t i = 0; i < strip.pixels; ++i) {
    const uint32_t* pixel = strip.input + i * strip.pixel_step;
    uint32x4_t prefix = vdupq_n_u32(0);
    for (int64_t r = 0; r < strip.run_count; ++r) {
      const uint32_t* word = pixel + strip.runs[r].offset;
      for (const uint32_t* end = word + strip.runs[r].words; word != end; ++word, out += 4) {
        prefix = veorq_u32(prefix, vld1q_dup_u32(word));
        vst1q_u32(out, prefix);
      }
    }
    if (strip.k_words % 2 != 0) {
      vst1q_u32(out, prefix);
      out += 4;
    }
  }
}

// ---- The tile ----

// One pixel, the last of an odd number. The loop for two is in tile_2x16.h.
template <bool kAdds, typename Counter>
inline void Step(const uint32_t* input, const uint32_t* weights, const Counter& counter, uint32x4_t* parity,
                 typename Counter::Counts* counts) {
  const uint32x4_t first = vld1q_u32(input), second = vld1q_u32(input + 4);
  for (int i = 0; i < kVectors; ++i, weights += 8) {
    const int v = kAdds ? i : i ^ 2;
    const uint32x4_t middle = veorq_u32(first, vld1q_u32(weights)), last = veorq_u32(second, vld1q_u32(weights + 4));
    const uint32x4_t carry = vbslq_u32(middle, last, parity[v]);
    parity[v] = last;
    counter.template Count<kAdds>(vcntq_u8(vreinterpretq_u8_u32(carry)), &counts[v]);
  }
}

template <typename Counter>
inline void Steps(const uint32_t* const (&inputs)[1], const uint32_t* weights, int64_t pairs,
                  TileState<typename Counter::Counts, 1>* state) {
  const Counter counter;
  const uint32_t* input = inputs[0];
  uint32x4_t parity[kVectors];
  typename Counter::Counts counts[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    parity[v] = state->parity[0][v];
    counts[v] = Counter::None();
  }
  if (pairs % 2 != 0) {
    Step<false>(input, weights, counter, parity, counts);
    input += 8;
    weights += kStepWords;
  }
  for (int64_t i = 0; i < pairs / 2; ++i, input += 16, weights += 2 * kStepWords) {
    Step<true>(input, weights, counter, parity, counts);
    Step<false>(input + 8, weights + kStepWords, counter, parity, counts);
  }
  for (int v = 0; v < kVectors; ++v) {
    state->parity[0][v] = parity[v];
    state->counts[0][v] = counts[v];
  }
}

template <typename Counter>
inline void Steps(const uint32_t* const (&inputs)[2], const uint32_t* weights, int64_t pairs,
                  TileState<typename Counter::Counts, 2>* state) {
  Counter::Loop(inputs[0], inputs[1], weights, pairs, state);
}

// Computes the popcounts of kPixels x 16 channels.
template <typename Counter, int kPixels>
inline void Popcounts(const uint32_t* (&inputs)[kPixels], const uint32_t* weights, int64_t pairs,
                      int32x4_t (&p)[kPixels][kVectors]) {
  const int32x4_t owed = vdupq_n_s32(static_cast<int32_t>(32 * ((pairs + 1) / 2)));
  TileState<typename Counter::Counts, kPixels> state;
  for (int i = 0; i < kPixels; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      state.parity[i][v] = vdupq_n_u32(pairs % 2 != 0 ? ~0u : 0u);
      p[i][v] = owed;
    }
  }
  // The first chunk has the odd pair; all others have an even number of pairs.
  for (int64_t left = pairs;;) {
    const int64_t chunk = left <= Counter::kMaxPairs ? left : Counter::kMaxPairs - left % 2;
    Steps<Counter>(inputs, weights, chunk, &state);
    left -= chunk;
    if (left == 0) break;
    weights += chunk * kStepWords;
    for (int i = 0; i < kPixels; ++i) {
      inputs[i] += chunk * 8;
      for (int v = 0; v < kVectors; ++v) p[i][v] = Counter::Sum(p[i][v], state.counts[i][v]);
    }
  }
  for (int i = 0; i < kPixels; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const uint8x16_t parity = vcntq_u8(vreinterpretq_u8_u32(state.parity[i][v]));
      p[i][v] = Counter::Total(p[i][v], state.counts[i][v], parity);
    }
  }
}

// ---- The strip ----

template <typename Counter, OutputKind kKind, int kPixels>
inline void RunTile(const ConvStrip& strip, int64_t pixel, int64_t channel) {
  const int64_t pairs = PairsOf(strip.k_words);
  const uint32_t* inputs[kPixels];
  for (int i = 0; i < kPixels; ++i) inputs[i] = static_cast<const uint32_t*>(strip.scratch) + (pixel + i) * 8 * pairs;
  const uint32_t* weights = static_cast<const uint32_t*>(strip.weights) + channel / kGroup * pairs * kStepWords;
  int32x4_t p[kPixels][kVectors];
  Popcounts<Counter, kPixels>(inputs, weights, pairs, p);
  Store<kKind, kPixels>(strip, pixel, channel, p);
}

template <typename Counter, OutputKind kKind>
void RunKind(const ConvStrip& strip) {
  for (int64_t channel = 0; channel < strip.channels; channel += kGroup) {
    int64_t pixel = 0;
    for (; pixel + 2 <= strip.pixels; pixel += 2) RunTile<Counter, kKind, 2>(strip, pixel, channel);
    if (pixel < strip.pixels) RunTile<Counter, kKind, 1>(strip, pixel, channel);
  }
}

template <typename Counter>
void Run(const ConvStrip& strip) {
  if (strip.new_input) MakePrefixes(strip);
  switch (strip.kind) {
    case OutputKind::kSums:
      return RunKind<Counter, OutputKind::kSums>(strip);
    case OutputKind::kFloat:
      return RunKind<Counter, OutputKind::kFloat>(strip);
    case OutputKind::kInt8:
      return RunKind<Counter, OutputKind::kInt8>(strip);
    case OutputKind::kBits:
      return RunKind<Counter, OutputKind::kBits>(strip);
  }
}

template <typename Counter>
int64_t Peak(int64_t rounds) {
  if (rounds < 1) return 0;
  Counter::PeakLoop(rounds);
  return rounds * 2 * 2 * kGroup * 2 * kWordBits;  // two pairs of words for 2 pixels
}

}  // namespace
}  // namespace bnnedge
