// The functions that an instruction set supplies to Stem: one table a file, listed in select.cc. stem.cc does
// everything that is the same for all of them: checks, filters of folded images, borders, the order of rows, threads.
// Channels of rows of codes are padded to whole blocks of 16.
#pragma once

#include <cstdint>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/stem.h"

namespace bnnedge {

constexpr int64_t kStemBlock = 16;
constexpr int64_t kStemTaps = 4;  // bytes of the image that most kernels multiply in one step
// A kernel may read so many bytes behind the input of a row.
constexpr int64_t kStemSlack = 64;

// How sums become codes (step 4 of stem.h). Arrays have an element for each padded channel. The codes are signed.
struct Requantization {
  Arithmetic arithmetic;
  const float* multiplier;     // kFloat
  const int32_t* mantissa;     // kFixedPoint: m
  const int32_t* left_shift;   // max(shift, 0)
  const int32_t* right_shift;  // max(-shift, 0)
  int32_t zero_point;
  int32_t low_code, high_code;
};

// The convolution along a row. Pixel i is the sum over rows r and bytes b < step_taps * row_steps of
//   input[i * pixel_step + r * row_step + b] * filter[o][r][b],
// the input unsigned, or signed for kernels with `signed_codes`.
struct StemShape {
  int64_t blocks;  // of output channels
  int64_t rows, row_steps;
  int64_t pixel_step;

  int64_t Steps() const { return rows * row_steps; }
};

struct StemRow : StemShape {
  const uint8_t* input;
  int64_t pixels, row_step;
  const void* weights;  // as pack_weights left them, 64-byte aligned
  const int32_t* base;  // where the sums start
  Requantization codes;
  int8_t* output;  // [pixels][16 * blocks]
  void* scratch;   // scratch_bytes, 64-byte aligned
};

struct StemPoolRow {
  const int8_t* const* rows;  // those that the windows meet, [columns][padded channels] each
  int64_t row_count;
  int64_t columns;
  int64_t kernel, stride, pad;  // along the columns; each window meets one at least
  int64_t pixels, blocks;
  int8_t* output;
};

struct StemKernel {
  const char* name = nullptr;
  bool signed_codes = false;  // whether the kernel reads the image's codes as signed bytes

  int64_t (*packed_bytes)(const StemShape& shape) = nullptr;
  // filter [16 * blocks][rows][step_taps * row_steps]
  void (*pack_weights)(const int8_t* filter, const StemShape& shape, void* packed) = nullptr;
  // Bytes of scratch for rows of `pixels` pixels; nullptr: none.
  int64_t (*scratch_bytes)(int64_t pixels, const StemShape& shape) = nullptr;
  // Step 2 of stem.h, to bytes q + 128.
  void (*quantize)(const float* values, int64_t count, Arithmetic arithmetic, const Quantization& codes,
                   uint8_t* bytes) = nullptr;
  // [channels][plane_step] -> [pixels][channels]
  void (*interleave)(const uint8_t* planes, int64_t plane_step, int64_t channels, int64_t pixels,
                     uint8_t* bytes) = nullptr;
  void (*convolve)(const StemRow& row) = nullptr;
  void (*pool)(const StemPoolRow& row) = nullptr;
  // codes [pixels][padded] -> values [pixels][channels]
  void (*dequantize)(const int8_t* codes, int64_t padded, int64_t pixels, int64_t channels, const Quantization& target,
                     float* values) = nullptr;

  int64_t step_taps = kStemTaps;
};

extern const StemKernel kStemPortable;
#ifdef BNNEDGE_X86_64
extern const StemKernel kStemAvx2;
extern const StemKernel kStemAvx512Vnni;
#endif
#ifdef BNNEDGE_AMX
extern const StemKernel kStemAmx;
#endif
#ifdef BNNEDGE_NEON
extern const StemKernel kStemNeon;
#endif
#ifdef BNNEDGE_NEON_DOT
extern const StemKernel kStemNeonDot;
#endif

// The tables that this CPU supports, fastest first.
const std::vector<const StemKernel*>& StemKernels();

// The fastest stem that needs no more instructions than the convolution `name`, a name that SelectConvKernel returned.
// The fastest convolution gets the fastest stem of all, "reference" gets nullptr.
const StemKernel* FindStemKernel(const char* name);

// Makes a Stem on `kernel`, whose tail `tail_kernel` runs. The arguments have been checked.
std::unique_ptr<Stem> MakeStem(const StemKernel& kernel, const ConvKernel& tail_kernel, const StemParams& params,
                               const StemWeights& weights, const Tail& tail);

}  // namespace bnnedge
