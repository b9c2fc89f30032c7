// The C interface of bnnedge_kernels: plain structs and pointers, no exceptions, no state.
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
#define BNNEDGE_ABI_VERSION 1

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

// Binary convolution with kernel `kernel` (NULL: environment variable BNNEDGE_KERNEL, else the fastest).
// The counts are in elements and must be exactly those of the parameters. On failure the output is untouched, and
// `error` (at most error_size bytes, NUL included) holds one sentence.
BNNEDGE_EXPORT int32_t bnnedge_bconv2d(const bnnedge_bconv2d_params* params, const char* kernel,
                                       const uint32_t* input, int64_t input_words, const uint32_t* filter,
                                       int64_t filter_words, int32_t* sums, int64_t sum_count, char* error,
                                       size_t error_size);

#ifdef __cplusplus
}
#endif
