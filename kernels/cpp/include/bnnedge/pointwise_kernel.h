// Float convolutions with a kernel of one pixel, one table an instruction set, listed in select.cc. Only instruction
// sets that multiply and add with one rounding have them.
//
// Such convolutions stand between the binary ones, on the shortcuts of networks for large images. If another library
// ran them, the network would fall into pieces that wait for each other's threads and pass float images through memory.
#pragma once

#include <cstdint>

namespace bnnedge {

// y[i][o] = clip(bias[o] + sum over c of x[i][c] * w[o][c]), o < out_channels <= block.
//
// The sum begins with the bias, takes the channels in order and rounds once for each, so that all kernels give the same
// bits, which are XNNPACK's too. clip(y) is min(max(y, low), high), and a NaN stays a NaN.
struct PointwiseStrip {
  // Output pixel i, from `first` on, reads at input + i / width * row_step + i % width * pixel_step.
  const float* input;
  int64_t width, pixel_step, row_step;
  int64_t first, pixels, channels;
  const float* weights;  // [channels][block], 64-byte aligned; 0 behind the last output channel
  const float* bias;     // [block]
  int64_t out_channels;
  float* output;  // of pixel `first`
  int64_t out_pixel_step;
  float low, high;
};

struct PointwiseKernel {
  int64_t block;
  void (*run)(const PointwiseStrip& run);
};

#ifdef BNNEDGE_X86_64
extern const PointwiseKernel kPointwiseAvx2, kPointwiseAvx512;
#endif
#ifdef BNNEDGE_NEON
extern const PointwiseKernel kPointwiseNeon;
#endif

// The table of the instruction set of `kernel`, a name that SelectConvKernel returned; nullptr if it has none.
const PointwiseKernel* FindPointwiseKernel(const char* kernel);

}  // namespace bnnedge
