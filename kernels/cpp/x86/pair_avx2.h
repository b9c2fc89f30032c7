// The image of pairs for count_avx2.h: for each nibble a of a pixel and b of its partner, the place of their table,
// a << 4 | b << 8, in 16 bits. The order of a word's nibbles is 0 4 1 5 2 6 3 7. In an unnamed namespace: see
// portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "bnnedge/conv_kernel.h"

namespace bnnedge {
namespace {

// Makes the places of 8 words. 16-bit lanes shifted by 4 j hold nibbles j and 4 + j; a transposition of 32-bit lanes
// brings the four pairs of each word together.
void PairEightWords(const uint32_t* first, const uint32_t* second, __m128i* places) {
  const __m256i a_place = _mm256_set1_epi16(0x00f0), b_place = _mm256_set1_epi16(0x0f00);
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  const auto place = [&](__m256i its_a, __m256i its_b) {
    return _mm256_or_si256(_mm256_and_si256(its_a, a_place), _mm256_and_si256(its_b, b_place));
  };
  const __m256i pair0 = place(_mm256_slli_epi16(a, 4), _mm256_slli_epi16(b, 8));
  const __m256i pair1 = place(a, _mm256_slli_epi16(b, 4));
  const __m256i pair2 = place(_mm256_srli_epi16(a, 4), b);
  const __m256i pair3 = place(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 4));
  const __m256i even01 = _mm256_unpacklo_epi32(pair0, pair1), odd01 = _mm256_unpackhi_epi32(pair0, pair1);
  const __m256i even23 = _mm256_unpacklo_epi32(pair2, pair3), odd23 = _mm256_unpackhi_epi32(pair2, pair3);
  const __m256i words[4] = {_mm256_unpacklo_epi64(even01, even23), _mm256_unpackhi_epi64(even01, even23),
                            _mm256_unpacklo_epi64(odd01, odd23), _mm256_unpackhi_epi64(odd01, odd23)};
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(places + i, _mm256_castsi256_si128(words[i]));
    _mm_storeu_si128(places + 4 + i, _mm256_extracti128_si256(words[i], 1));
  }
}

void PairWords(const uint32_t* first, const uint32_t* second, int64_t count, uint32_t* pairs) {
  constexpr int64_t kStep = 8;
  for (; count >= kStep; count -= kStep, first += kStep, second += kStep, pairs += kStep * kPairWords) {
    PairEightWords(first, second, reinterpret_cast<__m128i*>(pairs));
  }
  if (count == 0) return;
  uint32_t rest[2][kStep] = {};
  __m128i places[kStep];
  std::copy(first, first + count, rest[0]);
  std::copy(second, second + count, rest[1]);
  PairEightWords(rest[0], rest[1], places);
  std::memcpy(pairs, places, static_cast<size_t>(count * kPairWords) * sizeof(*pairs));
}

}  // namespace
}  // namespace bnnedge
