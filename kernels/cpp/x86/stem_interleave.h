// The parts that all x86 stems share. In an unnamed namespace: see portable/output_transform.h.
#pragma once

#include <immintrin.h>

#include "../portable/stem_scalar.h"

namespace bnnedge {
namespace {

struct SseBytes {
  static constexpr int64_t kBytes = 16;
  static __m128i Load(const int8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static void Store(int8_t* to, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v); }
  static __m128i Max(__m128i a, __m128i b) { return _mm_max_epi8(a, b); }
};

// Interleaves planes of bytes. Three of them, as of colours, are done 16 pixels at a time.
inline void Interleave(const uint8_t* planes, int64_t plane_step, int64_t channels, int64_t pixels, uint8_t* bytes) {
  int64_t i = 0;
  if (channels == 3) {
    // Output byte 3 x + c comes from lane x of plane c; -1 stands for no byte of that plane.
    alignas(16) int8_t from[3][3][16];
    for (int c = 0; c < 3; ++c) {
      for (int b = 0; b < 48; ++b) from[c][b / 16][b % 16] = static_cast<int8_t>(b % 3 == c ? b / 3 : -1);
    }
    __m128i order[3][3];
    for (int c = 0; c < 3; ++c) {
      for (int v = 0; v < 3; ++v) order[c][v] = _mm_load_si128(reinterpret_cast<const __m128i*>(from[c][v]));
    }
    for (; i + 16 <= pixels; i += 16) {
      __m128i plane[3];
      for (int c = 0; c < 3; ++c) {
        plane[c] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes + c * plane_step + i));
      }
      for (int v = 0; v < 3; ++v) {
        __m128i all = _mm_shuffle_epi8(plane[0], order[0][v]);
        for (int c = 1; c < 3; ++c) all = _mm_or_si128(all, _mm_shuffle_epi8(plane[c], order[c][v]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 3 * i + 16 * v), all);
      }
    }
  }
  InterleavePlanes(planes + i, plane_step, channels, pixels - i, bytes + i * channels);
}

}  // namespace
}  // namespace bnnedge
