// One binary convolution of an ONNX graph, free of any runtime, for any size and from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bnnedge/aligned.h"
#include "bnnedge/conv.h"

namespace bnnedge {

// The attributes, in ONNX's order: heights before widths, pads top, left, bottom, right.
struct Window {
  int64_t strides[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};
  int64_t dilations[2] = {1, 1};
  int64_t group = 1;
  int64_t channels = 0;  // of one group

  // What is wrong by itself, or an empty string.
  std::string Check() const;
  // Output size along `axis` (0 height, 1 width), below 1 if the kernel does not fit. `size` and `kernel` up to 2^31.
  int64_t OutSize(int axis, int64_t size, int64_t kernel) const;
};

// W of the operator: uint8 [out_channels, kernel_height, kernel_width, bytes].
struct Weights {
  int64_t dimensions[4];
  const uint8_t* data;
};

class Layer {
 public:
  // What goes in and out: float images in NCHW, or packed signs and float images in NHWC.
  enum Images { kFloatNchw, kPackedNhwc };

  // Packs the weights. For kFloatNchw `transform` is kFloat in NCHW, or kBits for an output of +-1; for kPackedNhwc
  // kFloat in NHWC or kBits, and groups fill whole words. Returns nullptr and one sentence in `error` for whatever is
  // wrong.
  static std::unique_ptr<Layer> Create(const Window& window, const Weights& weights, Transform transform,
                                       Images images, std::string* error);

  // Shapes are [N, C, H, W] here and below. Returns an empty string, or what is wrong with the input.
  std::string OutputShape(const int64_t* input, int64_t* output) const;

  // Several threads may run one layer at once, also with different sizes. Allocates only for a size, or a number of
  // runs at once, that was not there before.
  std::string Run(const float* input, const int64_t* shape, float* output, const Parallel& parallel);
  // Packed signs; without an output the float values are for the tail's bits alone.
  std::string Run(ConvTensors tensors, const int64_t* shape, const Parallel& parallel);

 private:
  // The convolutions prepared for one input size: one, or one a group where groups do not fill whole words.
  struct Plan {
    std::vector<std::unique_ptr<Conv>> convs;
    int64_t shape[4];
    int64_t scratch_bytes;
    int64_t value_bytes;  // of a float output that the caller does not want
    int users;
  };
  class Lease;

  Layer() = default;
  bool PerGroup() const { return window_.group > 1 && window_.channels % kWordBits != 0; }
  std::string AddPlan(const int64_t* shape);
  std::string Resize(Plan* plan, const int64_t* shape) const;
  std::string Acquire(const int64_t* shape, bool keeps_values, Plan** plan, AlignedBuffer* scratch);
  void Release(Plan* plan, AlignedBuffer scratch);
  void RunConv(const Conv& conv, const float* input, float* output, uint8_t* scratch, const Parallel& parallel) const;

  Window window_;
  Images images_ = kFloatNchw;
  int64_t out_channels_ = 0, kernel_[2] = {0, 0};
  std::vector<uint32_t> filter_;  // kept for further plans
  Transform transform_;

  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Plan>> plans_;
  std::vector<AlignedBuffer> scratches_;  // of nobody at the moment
};

}  // namespace bnnedge
