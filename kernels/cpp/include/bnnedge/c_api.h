// The C interface of bnnedge_kernels: plain structs and pointers, no exceptions. Functions that return int32_t return a
// bnnedge_status; on failure the outputs are untouched, and `error` (at most error_size bytes, NUL included) holds one
// sentence. Counts are in elements and must be exactly those of the parameters. A `kernel` that is NULL is that of the
// environment variable BNNEDGE_KERNEL, else the fastest.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BNNEDGE_EXPORT __declspec(dllexport)
#else
#define BNNEDGE_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised by one whenever a function or struct below changes.
#define BNNEDGE_ABI_VERSION 4

enum bnnedge_status { BNNEDGE_OK = 0, BNNEDGE_INVALID_ARGUMENT = 1, BNNEDGE_UNKNOWN_KERNEL = 2, BNNEDGE_INTERNAL = 3 };

// Meaning and limits: bnnedge/bconv2d.h.
typedef struct {
  int64_t batch, in_height, in_width, channels;
  int64_t out_channels, kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t dilation_height, dilation_width;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t pad_value, groups;
} bnnedge_bconv2d_params;

BNNEDGE_EXPORT int32_t bnnedge_abi_version(void);
BNNEDGE_EXPORT int32_t bnnedge_bit_layout_version(void);

// Name of kernel `index`, fastest first, among those this CPU supports; NULL beyond the last.
BNNEDGE_EXPORT const char* bnnedge_bconv2d_kernel_name(int32_t index);
// Name of the kernel that int8 stems (bnnedge/stem.h) take where convolutions take `kernel`; NULL if that is unknown.
BNNEDGE_EXPORT const char* bnnedge_stem_kernel_name(const char* kernel);

// Binary convolution to int32 sums.
BNNEDGE_EXPORT int32_t bnnedge_bconv2d(const bnnedge_bconv2d_params* params, const char* kernel, const uint32_t* input,
                                       int64_t input_words, const uint32_t* filter, int64_t filter_words, int32_t* sums,
                                       int64_t sum_count, char* error, size_t error_size);

// ---- Prepared convolutions: bnnedge/conv.h ----

enum bnnedge_output { BNNEDGE_SUMS = 0, BNNEDGE_FLOAT = 1, BNNEDGE_INT8 = 2, BNNEDGE_BITS = 3 };

// OutputTransform of bnnedge/conv.h.
typedef struct {
  int32_t kind;              // bnnedge_output
  int32_t doubled_popcount;  // 0 or 1: the domain
  int32_t nchw;              // 0 or 1
  int32_t clamp_low, clamp_high;
  const float* multiplier;  // [out_channels] or NULL
  const float* bias;
  const int32_t* threshold;
  // The tail of a residual block (bnnedge/conv.h). Its arrays are [out_channels] or NULL too.
  int32_t adds_residual, writes_bits;  // 0 or 1
  float low, high;
  const float* slope;
  const float* offset;
  const float* limit;
} bnnedge_transform;

typedef struct bnnedge_conv bnnedge_conv;

// Everything is copied. `threads` is 1 or more. A bnnedge_conv serves one caller at a time.
BNNEDGE_EXPORT int32_t bnnedge_conv_create(const bnnedge_bconv2d_params* params, const uint32_t* filter,
                                           int64_t filter_words, const bnnedge_transform* transform, const char* kernel,
                                           int32_t threads, bnnedge_conv** conv, char* error, size_t error_size);
BNNEDGE_EXPORT void bnnedge_conv_destroy(bnnedge_conv* conv);  // NULL is fine
BNNEDGE_EXPORT const char* bnnedge_conv_kernel_name(const bnnedge_conv* conv);
BNNEDGE_EXPORT int32_t bnnedge_conv_resize(bnnedge_conv* conv, int64_t batch, int64_t height, int64_t width,
                                           char* error, size_t error_size);
// The input is packed words or, with `input_is_float`, float NHWC values, which are packed first. `residual` and `bits`
// are NULL, with counts of 0, unless the tail has them; `residual` may be `output`.
BNNEDGE_EXPORT int32_t bnnedge_conv_run(bnnedge_conv* conv, int32_t input_is_float, const void* input,
                                        int64_t input_count, void* output, int64_t output_bytes, const float* residual,
                                        int64_t residual_count, uint32_t* bits, int64_t bit_words, char* error,
                                        size_t error_size);

// ---- Packing ----

enum bnnedge_source { BNNEDGE_NHWC_FLOAT = 0, BNNEDGE_NHWC_INT8 = 1, BNNEDGE_NCHW_FLOAT = 2 };

// Words of batch * pixels * channels values; `zero_point` is looked at for int8 only.
BNNEDGE_EXPORT int32_t bnnedge_pack(int32_t source, const char* kernel, const void* values, int64_t value_count,
                                    int32_t zero_point, int64_t batch, int64_t pixels, int64_t channels,
                                    uint32_t* words, int64_t word_count, char* error, size_t error_size);
// To float +-1 [pixels, channels].
BNNEDGE_EXPORT int32_t bnnedge_unpack(const char* kernel, const uint32_t* words, int64_t word_count, int64_t pixels,
                                      int64_t channels, float* values, int64_t value_count, char* error,
                                      size_t error_size);

typedef struct {
  int64_t batch, in_height, in_width, words;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, out_height, out_width;
} bnnedge_bmaxpool2d_params;

BNNEDGE_EXPORT int32_t bnnedge_bmaxpool2d(const bnnedge_bmaxpool2d_params* params, const uint32_t* input,
                                          int64_t input_words, uint32_t* output, int64_t output_words, char* error,
                                          size_t error_size);

// Runs the kernel's inner loop on registers and returns the number of its binary multiply-adds; 0 if it has no such
// loop.
BNNEDGE_EXPORT int64_t bnnedge_peak(const char* kernel, int64_t rounds);

#ifdef __cplusplus
}
#endif
