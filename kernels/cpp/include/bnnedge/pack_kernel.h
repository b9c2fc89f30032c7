// The functions of an instruction set that pack signs into words and unpack them: one table a file, listed in
// select.cc. A value is packed as bit 1 where it is below a limit. The comparison is one of numbers, never of sign
// bits, so that -0.0 and NaN give 0, as bnnedge/layout.h wants.
#pragma once

#include <cstdint>

namespace bnnedge {

struct PackKernel {
  // float [pixels, channels] -> words [pixels, words(channels)], with one limit for all values.
  void (*pack_nhwc_float)(const float* values, float limit, int64_t pixels, int64_t channels,
                          uint32_t* words) = nullptr;
  // The same with one limit for each channel, limits [channels].
  void (*pack_nhwc_float_by_channel)(const float* values, const float* limits, int64_t pixels, int64_t channels,
                                     uint32_t* words) = nullptr;
  // int8 [pixels, channels] -> words [pixels, words(channels)]. The zero point is in [-128, 127].
  void (*pack_nhwc_int8)(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels,
                         uint32_t* words) = nullptr;
  // float [channels, pixels] of one image -> words [pixels, words(channels)], with 0 for a limit.
  void (*pack_nchw_float)(const float* values, int64_t channels, int64_t pixels, uint32_t* words) = nullptr;
  // words [pixels, words(channels)] -> float +-1 [pixels, channels].
  void (*unpack_nhwc)(const uint32_t* words, int64_t pixels, int64_t channels, float* values) = nullptr;
};

extern const PackKernel kPackPortable;
#ifdef BNNEDGE_X86_64
extern const PackKernel kPackAvx2, kPackAvx512;
#endif
#ifdef BNNEDGE_NEON
extern const PackKernel kPackNeon;
#endif

// The table of the instruction set of `kernel`, a name that SelectConvKernel returned. "reference" and kernels that
// have no packing of their own get the portable one.
const PackKernel& FindPackKernel(const char* kernel);

}  // namespace bnnedge
