#include "conv_reference.h"

#include <algorithm>
#include <cmath>

namespace bnnedge {
namespace {

class ReferenceConv : public Conv {
 public:
  ReferenceConv(const BConv2dParams& params, const uint32_t* filter, const OutputTransform& transform)
      : params_(params), transform_(transform) {
    BConv2dSizes sizes{};
    CheckBConv2d(params, &sizes);
    outputs_ = sizes.outputs;
    filter_.assign(filter, filter + sizes.filter_words);
  }

  std::string Resize(int64_t batch, int64_t height, int64_t width) override {
    BConv2dParams next = params_;
    next.batch = batch;
    next.in_height = height;
    next.in_width = width;
    BConv2dSizes sizes{};
    std::string error = CheckBConv2d(next, &sizes);
    if (error.empty()) {
      params_ = next;
      outputs_ = sizes.outputs;
    }
    return error;
  }

  const BConv2dParams& params() const override { return params_; }
  const char* kernel_name() const override { return "reference"; }
  int64_t WorkspaceBytes() const override { return outputs_ * static_cast<int64_t>(sizeof(int32_t)); }

  void Run(const ConvTensors& tensors, void* workspace, const Parallel&) const override {
    int32_t* sums = static_cast<int32_t*>(workspace);
    BConv2dReference(params_, tensors.input, filter_.data(), sums);
    const int64_t channels = params_.out_channels;
    const int64_t image_pixels = params_.OutHeight() * params_.OutWidth();
    uint32_t* bits = transform_.tail.writes_bits ? tensors.bits : nullptr;
    if (transform_.kind == OutputKind::kBits) bits = static_cast<uint32_t*>(tensors.output);
    if (bits != nullptr) std::fill_n(bits, outputs_ / channels * WordsFor(channels), 0u);
    for (int64_t i = 0; i < outputs_; ++i) {
      const int64_t pixel = i / channels, o = i % channels;
      const int64_t nchw = (pixel / image_pixels * channels + o) * image_pixels + pixel % image_pixels;
      Store(sums[i], pixel, o, transform_.layout == Layout::kNchw ? nchw : i, tensors);
    }
  }

 private:
  void Store(int32_t sum, int64_t pixel, int64_t o, int64_t index, const ConvTensors& tensors) const {
    void* output = tensors.output;
    const int64_t products = params_.kernel_height * params_.kernel_width * params_.GroupChannels();
    const bool doubled = transform_.domain == Domain::kDoubledPopcount;
    const int32_t v = doubled ? static_cast<int32_t>(products - sum) : sum;
    const size_t channel = static_cast<size_t>(o);
    switch (transform_.kind) {
      case OutputKind::kSums:
        static_cast<int32_t*>(output)[index] = v;
        break;
      case OutputKind::kFloat:
        static_cast<float*>(output)[index] = AfterTail(Scaled(v, channel), pixel, index, channel, tensors);
        break;
      case OutputKind::kInt8: {
        const float rounded = std::round(Scaled(v, channel));
        static_cast<int8_t*>(output)[index] = static_cast<int8_t>(std::min(std::max(rounded, -128.0f), 127.0f));
        break;
      }
      case OutputKind::kBits: {
        const int32_t threshold = transform_.threshold[channel];
        const uint32_t bit = doubled ? v > threshold : v < threshold;
        SetBit(static_cast<uint32_t*>(output), pixel, o, bit);
        break;
      }
    }
  }

  float Scaled(int32_t v, size_t channel) const {
    const int32_t clamped = std::min(std::max(v, transform_.clamp_low), transform_.clamp_high);
    return static_cast<float>(clamped) * transform_.multiplier[channel] + transform_.bias[channel];
  }

  float AfterTail(float y, int64_t pixel, int64_t index, size_t channel, const ConvTensors& tensors) const {
    const Tail& tail = transform_.tail;
    if (tail.adds_residual) y += tensors.residual[index];
    if (!tail.slope.empty() && y < 0.0f) y *= tail.slope[channel];
    if (!tail.offset.empty()) y += tail.offset[channel];
    if (y < tail.low) y = tail.low;
    if (y > tail.high) y = tail.high;
    const float limit = tail.limit.empty() ? 0.0f : tail.limit[channel];
    if (tail.writes_bits) SetBit(tensors.bits, pixel, static_cast<int64_t>(channel), y < limit);
    return y;
  }

  void SetBit(uint32_t* words, int64_t pixel, int64_t o, uint32_t bit) const {
    words[pixel * WordsFor(params_.out_channels) + o / kWordBits] |= bit << (o % kWordBits);
  }

  BConv2dParams params_;
  OutputTransform transform_;
  std::vector<uint32_t> filter_;
  int64_t outputs_ = 0;
};

}  // namespace

std::unique_ptr<Conv> MakeReferenceConv(const BConv2dParams& params, const uint32_t* filter,
                                        const OutputTransform& transform) {
  return std::make_unique<ReferenceConv>(params, filter, transform);
}

}  // namespace bnnedge
