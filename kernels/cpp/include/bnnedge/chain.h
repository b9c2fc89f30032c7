// Chained words give the same popcounts with half as many popcount instructions, and with 5 operations a pair of words
// instead of 6.
//
// Let x_1 .. x_n be the words of (input xor filter) of one output, n even, s_0 any word and s_k = s_0 ^ x_1 ^ .. ^ x_k.
// A full adder of s_(2j), x_(2j+1), x_(2j+2) has s_(2j+2) for its sum, and its carry is the majority of the three,
// which is s_(2j+1) ? ~s_(2j+2) : s_(2j). Sum and carry keep the number of ones, the carry counting twice, so
//   popcount(x_1) + .. + popcount(x_n) = 2 sum_j popcount(carry_j) + popcount(s_n) - popcount(s_0)
// And s_k is one xor as well, if both operands are stored as running xors: s_k = a_k ^ w_k, where w_k is the xor of the
// filter's first k words, and a_k that of the window's first k words and of s_0.
//
// With the words of a window taken column by column, s_0 may be the xor of all columns to the left of the window. Then
// the a_k of all windows in a row lie in one row of chained words: after c columns of words h(c) = xor of all words so
// far, and chained[c][r] = h(c) ^ (the column's words of kernel rows 0 to r). A window that starts at column c reads
// n words from chained[c][0] on, finds its s_0 just before them, and popcount(s_0) in ones[c].
#pragma once

#include <cstdint>

namespace bnnedge {

constexpr int64_t kMaxChainHeight = 3;
// A row of chained words is rounded up to so many columns, so that it can be written 16 columns at a time.
constexpr int64_t kChainColumns = 16;

// A row of chained words covers the kernel rows under one row of output pixels. A column is one word of a pixel.
struct ChainedRow {
  const uint32_t* rows[kMaxChainHeight];  // first word of each image row; nullptr for a row outside, which is all 0
  int64_t left, inside;                   // columns of zeros, then of the image; zeros follow again
  int64_t columns;                        // of all three together
  uint32_t* chained;                      // [columns rounded up][height], and s_0 of the first window before it
  int32_t* ones;                          // [columns rounded up]
};

// Words of the running xor before chained[0][0]. One is needed; more keep the rows aligned.
constexpr int64_t kChainLead = 16;

// Chains the words of one row; ConvKernel::chain chooses the function.
using ChainRowFunction = void (*)(const ChainedRow& row);

}  // namespace bnnedge
