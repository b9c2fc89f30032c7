// Stands before the compiler's header of this name in builds with BNNEDGE_EMULATE: AVX-512 and AMX in plain C++, so
// that kernels written with them can be tested on any x86-64 CPU. Most of it is SIMDe's (Debian: libsimde-dev). This
// file adds what the kernels use and release 0.7.4 lacks, lane by lane, as Intel's Intrinsics Guide describes it.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/avx512/dpbusd.h>
#include <simde/x86/avx512/popcnt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using __mmask8 = uint8_t;
using __mmask16 = uint16_t;
using __mmask32 = uint32_t;

#define _MM_FROUND_NO_EXC 8

// SIMDe's macro has no parentheses around the mode, which may be an expression.
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(values, mode) simde_mm512_roundscale_ps(values, (mode))

#define BNNEDGE_PIN(value) static_cast<void>(value)  // no register is that long

namespace bnnedge_emulated {

template <typename T, typename Vector>
auto Lanes(const Vector& vector) {
  std::array<T, sizeof(Vector) / sizeof(T)> lanes;
  std::memcpy(&lanes, &vector, sizeof(vector));
  return lanes;
}

template <typename Vector, typename T, size_t kLanes>
Vector From(const std::array<T, kLanes>& lanes) {
  static_assert(sizeof(Vector) == sizeof(lanes));
  Vector vector;
  std::memcpy(&vector, &lanes, sizeof(vector));
  return vector;
}

// The vector whose lane i is lane(i).
template <typename Vector, typename T, typename Lane>
Vector Each(const Lane& lane) {
  std::array<T, sizeof(Vector) / sizeof(T)> lanes;
  for (size_t i = 0; i < lanes.size(); ++i) lanes[i] = lane(i);
  return From<Vector>(lanes);
}

inline bool Has(uint64_t mask, size_t lane) { return (mask >> lane & 1) != 0; }

// Elements that are masked out are not touched.
template <typename Vector, typename T>
Vector LoadSome(uint64_t mask, const void* from) {
  return Each<Vector, T>([&](size_t i) {
    T value{};
    if (Has(mask, i)) std::memcpy(&value, static_cast<const unsigned char*>(from) + i * sizeof(T), sizeof(T));
    return value;
  });
}

template <typename T, typename Vector>
void StoreSome(void* to, uint64_t mask, const Vector& vector) {
  const auto lanes = Lanes<T>(vector);
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (Has(mask, i)) std::memcpy(static_cast<unsigned char*>(to) + i * sizeof(T), &lanes[i], sizeof(T));
  }
}

// One register file; a tile is 16 rows of 64 bytes, as large as the kernels configure all of theirs.
struct Tile {
  unsigned char row[16][64];
};
inline thread_local Tile tiles[8];

inline void LoadTile(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tiles[tile].row[r], static_cast<const char*>(from) + r * stride, 64);
}

inline void StoreTile(int tile, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile].row[r], 64);
}

// sums[m][n] += a[m][4 k + i] * b[k][4 n + i], a unsigned, b signed
inline void MultiplyTiles(int sums, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    int32_t row[16];
    std::memcpy(row, tiles[sums].row[m], sizeof(row));
    for (int n = 0; n < 16; ++n) {
      for (int k = 0; k < 64; ++k)
        row[n] += tiles[a].row[m][k] * static_cast<int8_t>(tiles[b].row[k / 4][4 * n + k % 4]);
    }
    std::memcpy(tiles[sums].row[m], row, sizeof(row));
  }
}

}  // namespace bnnedge_emulated

// ---- Loads and stores of some lanes ----

inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) {
  return bnnedge_emulated::LoadSome<__m512, float>(mask, from);
}
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* from) {
  return bnnedge_emulated::LoadSome<__m512i, int32_t>(mask, from);
}
inline __m256i _mm256_maskz_loadu_epi8(__mmask32 mask, const void* from) {
  return bnnedge_emulated::LoadSome<__m256i, int8_t>(mask, from);
}
inline void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 values) {
  bnnedge_emulated::StoreSome<float>(to, mask, values);
}
inline void _mm512_mask_storeu_epi32(void* to, __mmask16 mask, __m512i values) {
  bnnedge_emulated::StoreSome<int32_t>(to, mask, values);
}
inline void _mm_mask_storeu_epi8(void* to, __mmask16 mask, __m128i values) {
  bnnedge_emulated::StoreSome<int8_t>(to, mask, values);
}

// ---- Arithmetic ----

// SIMDe rounds twice.
#undef _mm512_fmadd_ps
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto first = bnnedge_emulated::Lanes<float>(a), second = bnnedge_emulated::Lanes<float>(b);
  const auto third = bnnedge_emulated::Lanes<float>(c);
  return bnnedge_emulated::Each<__m512, float>([&](size_t i) { return std::fma(first[i], second[i], third[i]); });
}

// ---- Conversions ----

inline __m512 _mm512_cvtepi32_ps(__m512i values) {
  const auto lanes = bnnedge_emulated::Lanes<int32_t>(values);
  return bnnedge_emulated::Each<__m512, float>([&](size_t i) { return static_cast<float>(lanes[i]); });
}
inline __m512i _mm512_cvttps_epi32(__m512 values) {
  const auto lanes = bnnedge_emulated::Lanes<float>(values);
  return bnnedge_emulated::Each<__m512i, int32_t>([&](size_t i) { return _mm_cvttss_si32(_mm_set_ss(lanes[i])); });
}
// `rounding`: to the nearest, which is how _mm_cvtss_si32 rounds too.
inline __m512i _mm512_cvt_roundps_epi32(__m512 values, int /*rounding*/) {
  const auto lanes = bnnedge_emulated::Lanes<float>(values);
  return bnnedge_emulated::Each<__m512i, int32_t>([&](size_t i) { return _mm_cvtss_si32(_mm_set_ss(lanes[i])); });
}
inline __m128i _mm512_cvtepi32_epi8(__m512i values) {
  const auto lanes = bnnedge_emulated::Lanes<int32_t>(values);
  return bnnedge_emulated::Each<__m128i, int8_t>([&](size_t i) { return static_cast<int8_t>(lanes[i]); });
}

// ---- Lanes ----

inline __m512i _mm512_srav_epi32(__m512i values, __m512i counts) {
  const auto lanes = bnnedge_emulated::Lanes<int32_t>(values);
  const auto by = bnnedge_emulated::Lanes<uint32_t>(counts);
  return bnnedge_emulated::Each<__m512i, int32_t>([&](size_t i) { return lanes[i] >> std::min(by[i], 31u); });
}
inline __m512i _mm512_alignr_epi32(__m512i high, __m512i low, int count) {
  const auto lows = bnnedge_emulated::Lanes<int32_t>(low), highs = bnnedge_emulated::Lanes<int32_t>(high);
  return bnnedge_emulated::Each<__m512i, int32_t>([&](size_t i) {
    const size_t at = i + static_cast<size_t>(count % 16);
    return at < 16 ? lows[at] : highs[at - 16];
  });
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int selected) {
  const auto first = bnnedge_emulated::Lanes<float>(a), second = bnnedge_emulated::Lanes<float>(b);
  return bnnedge_emulated::Each<__m512, float>([&](size_t i) {
    const size_t four = static_cast<size_t>(selected >> (2 * (i / 4)) & 3);
    return (i < 8 ? first : second)[four * 4 + i % 4];
  });
}

// ---- Comparisons under a mask ----

inline __mmask16 _mm512_mask_cmp_ps_mask(__mmask16 mask, __m512 a, __m512 b, int predicate) {
  __mmask16 result = 0;
  const auto first = bnnedge_emulated::Lanes<float>(a), second = bnnedge_emulated::Lanes<float>(b);
  for (size_t i = 0; i < 16; ++i) {
    const bool holds = predicate == _CMP_LT_OQ   ? first[i] < second[i]
                       : predicate == _CMP_GT_OQ ? first[i] > second[i]
                                                 : (std::abort(), false);
    if (holds && bnnedge_emulated::Has(mask, i)) result = static_cast<__mmask16>(result | 1u << i);
  }
  return result;
}
inline __mmask32 _mm256_mask_cmplt_epi8_mask(__mmask32 mask, __m256i a, __m256i b) {
  __mmask32 result = 0;
  const auto first = bnnedge_emulated::Lanes<int8_t>(a), second = bnnedge_emulated::Lanes<int8_t>(b);
  for (size_t i = 0; i < 32; ++i) {
    if (first[i] < second[i] && bnnedge_emulated::Has(mask, i)) result |= 1u << i;
  }
  return result;
}

// ---- AMX ----

#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(tile) static_cast<void>(bnnedge_emulated::tiles[tile] = {})
#define _tile_loadd(tile, from, stride) bnnedge_emulated::LoadTile(tile, from, stride)
#define _tile_stored(tile, to, stride) bnnedge_emulated::StoreTile(tile, to, stride)
#define _tile_dpbusd(sums, a, b) bnnedge_emulated::MultiplyTiles(sums, a, b)
