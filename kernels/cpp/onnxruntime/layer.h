// One binary convolution of an ONNX graph, which knows no runtime and serves any size from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../workspace.h"
#include "bnnedge/conv.h"

namespace bnnedge {

// The attributes of a convolution in ONNX's order: heights before widths, pads top, left, bottom, right.
struct ConvAttributes {
  int64_t strides[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};
  int64_t dilations[2] = {1, 1};
  int64_t group = 1;
  int64_t channels = 0;  // of one group

  // Returns an empty string, or what is wrong with the attributes alone.
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
  // The images that go in and out: float in NCHW, or packed signs and float in NHWC.
  enum Images { kFloatNchw, kPackedNhwc };

  // Packs the weights. For kFloatNchw, `transform` is kFloat in NCHW, or kBits for an output of +-1. For kPackedNhwc,
  // it is kFloat in NHWC or kBits, and groups fill whole words. Returns nullptr and one sentence in `error` if anything
  // is wrong.
  static std::unique_ptr<Layer> Create(const ConvAttributes& attributes, const Weights& weights,
                                       OutputTransform transform, Images images, std::string* error);

  // Shapes are [N, C, H, W] here and below. Returns an empty string, or what is wrong with the input.
  std::string OutputShape(const int64_t* input, int64_t* output) const;

  // Several threads may run one layer at once, also with different sizes. A run allocates only for a size, or a number
  // of runs at once, that is new.
  std::string Run(const float* input, const int64_t* shape, float* output, const Parallel& parallel);
  // The input is packed signs. Without an output, the float values only serve the bits of the tail.
  std::string Run(ConvTensors tensors, const int64_t* shape, const Parallel& parallel);

 private:
  // The convolutions prepared for one input size: a single one, or one for each group if groups do not fill whole
  // words.
  struct SizedConvs {
    std::vector<std::unique_ptr<Conv>> convs;
    int64_t shape[4];
    int64_t scratch_bytes;
    int64_t value_bytes;  // for a float output that the caller does not want
    int users;
  };
  class Lease;

  Layer() = default;
  bool PerGroup() const { return attributes_.group > 1 && attributes_.channels % kWordBits != 0; }
  std::string AddSize(const int64_t* shape);
  std::string Resize(SizedConvs* sized, const int64_t* shape) const;
  std::string Acquire(const int64_t* shape, bool keeps_values, SizedConvs** sized, WorkspacePool::Lease* scratch);
  void Release(SizedConvs* sized);
  void RunConv(const Conv& conv, const float* input, float* output, uint8_t* scratch, const Parallel& parallel) const;

  ConvAttributes attributes_;
  Images images_ = kFloatNchw;
  int64_t out_channels_ = 0, kernel_[2] = {0, 0};
  std::vector<uint32_t> filter_;  // kept for further sizes
  OutputTransform transform_;

  std::mutex mutex_;  // guards sizes_
  std::vector<std::unique_ptr<SizedConvs>> sizes_;
  WorkspacePool workspaces_;
};

}  // namespace bnnedge
