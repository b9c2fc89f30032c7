// Chains words (bnnedge/chain.h) with AVX-512, 16 columns at a time. In an unnamed namespace: see
// portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "bnnedge/chain.h"

namespace bnnedge {
namespace {

// Lane k becomes the xor of lanes 0 to k.
inline __m512i RunningXor(__m512i x) {
  const __m512i zero = _mm512_setzero_si512();
  x = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 15));
  x = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 14));
  x = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 12));
  return _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 8));
}

// Stores [3][16] as [16][3].
inline void StoreInterleaved(const __m512i (&rows)[3], uint32_t* to) {
  // Word 16 q + l of the result is column (16 q + l) / 3 of row (16 q + l) % 3. One permutation picks the lanes of rows
  // 0 and 1, where row 1 counts from 16; a second one puts the lanes of row 2 over them.
  alignas(64) static constexpr int32_t kColumns[3][16] = {
      {0, 16, 0, 1, 17, 1, 2, 18, 2, 3, 19, 3, 4, 20, 4, 5},
      {21, 5, 6, 22, 6, 7, 23, 7, 8, 24, 8, 9, 25, 9, 10, 26},
      {10, 11, 27, 11, 12, 28, 12, 13, 29, 13, 14, 30, 14, 15, 31, 15}};
  constexpr __mmask16 kThird[3] = {0x4924, 0x2492, 0x9249};
#pragma GCC unroll 3
  for (int q = 0; q < 3; ++q) {
    const __m512i columns = _mm512_load_si512(kColumns[q]);
    const __m512i both = _mm512_permutex2var_epi32(rows[0], columns, rows[1]);
    _mm512_storeu_si512(to + q * 16, _mm512_mask_permutexvar_epi32(both, kThird[q], columns, rows[2]));
  }
}

inline void StoreInterleaved(const __m512i (&rows)[1], uint32_t* to) { _mm512_storeu_si512(to, rows[0]); }

template <int kHeight>
void ChainWords(const ChainedRow& row) {
  const __m512i last = _mm512_set1_epi32(15);
  __m512i before = _mm512_setzero_si512();  // the xor of all columns so far, in all lanes
  row.chained[-1] = 0;
  for (int64_t c = 0; c < row.columns; c += 16) {
    const auto lanes = [c](int64_t end) { return (1u << std::clamp<int64_t>(end - c, 0, 16)) - 1u; };
    const auto inside = static_cast<__mmask16>(lanes(row.left + row.inside) & ~lanes(row.left));
    __m512i column[kHeight];  // the xor of rows 0 to r
    __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 3
    for (int r = 0; r < kHeight; ++r) {
      if (row.rows[r] != nullptr) {
        total = _mm512_xor_si512(total, _mm512_maskz_loadu_epi32(inside, row.rows[r] + (c - row.left)));
      }
      column[r] = total;
    }
    const __m512i up_to = RunningXor(total);
    const __m512i left_of = _mm512_xor_si512(_mm512_xor_si512(up_to, total), before);
    _mm512_storeu_si512(row.ones + c, _mm512_popcnt_epi32(left_of));
#pragma GCC unroll 3
    for (int r = 0; r < kHeight; ++r) column[r] = _mm512_xor_si512(column[r], left_of);
    StoreInterleaved(column, row.chained + c * kHeight);
    before = _mm512_xor_si512(before, _mm512_permutexvar_epi32(last, up_to));
  }
}

}  // namespace
}  // namespace bnnedge
