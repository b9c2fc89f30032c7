// CONV_2D with a kernel of one pixel in float, see bnnedge/pointwise_kernel.h.
#include <algorithm>

#include "bnnedge/aligned.h"
#include "bnnedge/conv_kernel.h"
#include "bnnedge/pointwise_kernel.h"
#include "op.h"
#include "range.h"

namespace bnnedge::tflite {
namespace {

class Pointwise : public Op {
 public:
  explicit Pointwise(const ConvParams& params)
      : stride_{params.stride_height, params.stride_width}, range_(Range::OfActivation(params.activation)) {}

  const char* code() const override { return "CONV_2D"; }

  // With windows of one pixel, SAME and VALID both mean no padding.
  void Prepare() override {
    Require(inputs.size() >= 2 && inputs[0] != nullptr && inputs[1] != nullptr, "needs an input and a filter");
    const std::vector<int64_t>&shape = inputs[0]->shape, &filter = inputs[1]->shape;
    RequireType(*inputs[0], "input", Type::kFloat32);
    Require(shape.size() == 4, "input must be [N, H, W, C], found " + ShapeText(shape));
    Require(filter.size() == 4 && filter[1] == 1 && filter[2] == 1 && filter[3] == shape[3],
            "filter must be [O, 1, 1, " + std::to_string(shape[3]) + "], found " + ShapeText(filter));
    inputs[0]->Elements();
    output->shape = {shape[0], (shape[1] - 1) / stride_[0] + 1, (shape[2] - 1) / stride_[1] + 1, filter[0]};
    RequireProportion();
  }

  void Build(const char* kernel) override {
    std::string error;
    const char* const selected = SelectConvKernel(kernel, &error);
    if (selected == nullptr) Fail(error);
    const PointwiseKernel* const found = FindPointwiseKernel(selected);
    Require(found != nullptr, std::string("kernel ") + selected + " has none in float");
    if (found == kernel_) return;
    kernel_ = found;
    Pack();
  }

  void Run(const RunContext& context) const override {
    const int64_t images = output->shape[0], pixels = output->shape[1] * output->shape[2];
    // A thread that gets a block of channels shares its weights with no other. If there are more threads than blocks,
    // the pixels are cut into stripes too.
    const int64_t most_stripes = (pixels + kLeastPixels - 1) / kLeastPixels;
    const int64_t stripes = std::min(most_stripes, (context.parallel.threads - 1) / (images * Blocks()) + 1);
    const int64_t cost = pixels / stripes * inputs[0]->Channels() * kernel_->block / kMacsPerByte;
    ForParts(context.parallel, images * Blocks() * stripes, cost, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        const int64_t stripe = i % stripes, block = i / stripes % Blocks(), image = i / stripes / Blocks();
        RunStripe(image, block, pixels * stripe / stripes, pixels * (stripe + 1) / stripes);
      }
    });
  }

 private:
  static constexpr int64_t kLeastPixels = 24;
  static constexpr int64_t kMacsPerByte = 2;  // multiply-adds in the time of one byte of other operators

  int64_t Blocks() const { return (output->Channels() + kernel_->block - 1) / kernel_->block; }

  // Packs the filter to [blocks][channels][block], followed by the bias, [blocks][block]; aligned.
  void Pack() {
    const int64_t block = kernel_->block, channels = inputs[0]->Channels(), filters = output->Channels();
    const auto* const filter = inputs[1]->As<const float>();
    const bool has_bias = inputs.size() > 2 && inputs[2] != nullptr;
    const int64_t values = Blocks() * block * (channels + 1);
    packed_ = AllocateAligned(values * int64_t{sizeof(float)});
    weights_ = reinterpret_cast<float*>(packed_.get());
    std::fill_n(weights_, values, 0.0f);
    bias_ = weights_ + Blocks() * block * channels;
    for (int64_t o = 0; o < filters; ++o) {
      float* const to = weights_ + o / block * block * channels + o % block;
      for (int64_t c = 0; c < channels; ++c) to[c * block] = filter[o * channels + c];
      if (has_bias) bias_[o] = inputs[2]->As<const float>()[o];
    }
  }

  // Computes pixels [first, last) of one image; they may begin within a row.
  void RunStripe(int64_t image, int64_t block, int64_t first, int64_t last) const {
    const int64_t channels = inputs[0]->Channels(), filters = output->Channels();
    const int64_t width = output->shape[2], height = output->shape[1];
    PointwiseStrip run{};
    run.input = inputs[0]->As<const float>() + image * inputs[0]->shape[1] * inputs[0]->shape[2] * channels;
    run.width = width;
    run.pixel_step = stride_[1] * channels;
    run.row_step = stride_[0] * inputs[0]->shape[2] * channels;
    run.first = first;
    run.pixels = last - first;
    run.channels = channels;
    run.weights = weights_ + block * kernel_->block * channels;
    run.bias = bias_ + block * kernel_->block;
    run.out_channels = std::min(kernel_->block, filters - block * kernel_->block);
    run.output = output->As<float>() + (image * height * width + first) * filters + block * kernel_->block;
    run.out_pixel_step = filters;
    run.low = range_.low;
    run.high = range_.high;
    kernel_->run(run);
  }

  const int64_t stride_[2];
  const Range range_;
  const PointwiseKernel* kernel_ = nullptr;
  AlignedBytes packed_;
  float *weights_ = nullptr, *bias_ = nullptr;  // in packed_
};

}  // namespace

std::unique_ptr<Op> MakePointwise(const ConvParams& params) { return std::make_unique<Pointwise>(params); }

}  // namespace bnnedge::tflite
