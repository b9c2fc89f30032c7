// A network's first layers in 8 bits: float image -> codes -> convolution -> codes -> max-pool -> floats and signs.
//
// In steps, with codes q in [-128, 127] that mean (q - zero_point) * scale, all steps on one image of a batch:
//   1. with fold 2 the image becomes half as high and wide: channel (2 r + s) C + c of pixel (i, j) is channel c of
//      pixel (2 i + r, 2 j + s);
//   2. q = clamp(round(x / scale) + zero_point, -128, 127); a NaN is -128;
//   3. a = bias[o] + sum over the taps inside the image of (q - zero_point) * filter[o, tap], modulo 2^32;
//   4. q = clamp(round(a * multiplier[o]) + zero_point, low_code, high_code) of the output's zero point;
//   5. the maximum over the windows of the pool, of the pixels inside;
//   6. y = float(q - zero_point) * scale, then the Tail (bnnedge/conv.h), which may give packed signs too.
// Runtimes differ in how steps 2 and 4 round: see Arithmetic.
//
// The steps are fused. Codes are bytes u = q + 128 in an image with a border of zero_point + 128, so that the sum needs
// no care for borders: a = sum of u * filter + (bias[o] - (zero_point + 128) * sum of filter). A filter on a folded
// image is one of twice the size and stride on the image itself; taps around it that are 0 for all outputs are left
// out. The rows of steps 3 to 6 are made as the pool needs them and stay in the first-level cache.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bnnedge/conv.h"

namespace bnnedge {

enum class Arithmetic {
  // As ONNX Runtime: halves are rounded to even in both steps, multiplier = input scale * weight scale / output scale
  // in float32, and float(a) * multiplier is rounded to float32.
  kFloat,
  // As TensorFlow Lite: step 2 rounds halves away from 0. multiplier = m 2^-31 2^shift with m in [2^30, 2^31), made of
  // the quotient of the scales in double. a 2^max(shift, 0) m 2^-31 is rounded with halves up, then multiplied by
  // 2^min(shift, 0) and rounded with halves away from 0.
  kFixedPoint,
};

// The meaning of int8 codes: code q stands for (q - zero_point) * scale.
struct Quantization {
  float scale;         // finite, above 0
  int32_t zero_point;  // [-128, 127]
};

// The window of a convolution or pool: sizes along height and width, in that order. Pads are top, left, bottom, right,
// and each is smaller than the kernel.
struct KernelWindow {
  int64_t kernel[2], strides[2], pads[4];

  // The number of windows on `size` pixels along `axis`, 0 if there is none.
  int64_t Count(int axis, int64_t size) const;
};

struct StemParams {
  int64_t channels, out_channels;
  Layout layout;  // of the float image
  int64_t fold;   // 1 or 2
  KernelWindow conv;
  bool pools;
  KernelWindow pool;
  Arithmetic arithmetic;
  Quantization source, target;
  int32_t low_code, high_code;  // range of the convolution's result, within [-128, 127]

  int64_t FilterChannels() const { return fold * fold * channels; }
  // K: products in one sum.
  int64_t FanIn() const { return conv.kernel[0] * conv.kernel[1] * FilterChannels(); }
};

struct StemWeights {
  const int8_t* filter;       // [O, kh, kw, FilterChannels]
  const float* filter_scale;  // [O], finite and not below 0
  const int32_t* bias;        // [O]
};

// An input size and the sizes that follow from it.
struct StemSize {
  int64_t batch, in_height, in_width;
  int64_t folded_height, folded_width;
  int64_t conv_height, conv_width;
  int64_t out_height, out_width;
  int64_t workspace_bytes;
};

struct StemTensors {
  const float* image;               // [N, C, H, W] or [N, H, W, C]
  float* output;                    // [N, OH, OW, O], or nullptr: not wanted
  const float* residual = nullptr;  // residual and bits as in ConvTensors, if the tail has them
  uint32_t* bits = nullptr;
  // The codes in NHWC after step 2 (of the folded image), step 4 and step 5; nullptr for those that are not wanted.
  int8_t* quantized = nullptr;
  int8_t* convolved = nullptr;
  int8_t* pooled = nullptr;
};

// Sets all sizes but workspace_bytes from batch, height and width. Returns an empty string, or what is wrong.
std::string FitStem(const StemParams& params, StemSize* size);

// A stem is immutable: Run may be called from several threads at once with separate workspaces.
class Stem {
 public:
  // Everything is copied. `kernel` names the instruction set, as in SelectConvKernel. Returns nullptr and one sentence
  // in `error` if anything is wrong.
  static std::unique_ptr<Stem> Create(const StemParams& params, const StemWeights& weights, const Tail& tail,
                                      const char* kernel, std::string* error);
  virtual ~Stem() = default;

  // Like FitStem, and sets workspace_bytes too.
  virtual std::string Fit(StemSize* size) const = 0;
  // `workspace` is 64-byte aligned. Does not allocate.
  virtual void Run(const StemSize& size, const StemTensors& tensors, void* workspace,
                   const Parallel& parallel) const = 0;
  virtual const StemParams& params() const = 0;
  virtual const char* kernel_name() const = 0;
};

}  // namespace bnnedge
