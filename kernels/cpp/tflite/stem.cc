// An int8 stem (stem_chain.h) as one operator.
#include <algorithm>
#include <utility>

#include "fuse.h"
#include "stem_chain.h"

namespace bnnedge::tflite {
namespace {

class StemOp : public ConvOp {
 public:
  StemOp(StemChain chain, const StemValues& values) : chain_(std::move(chain)), values_(values) {}

  const char* code() const override { return "CONV_2D"; }

  void Prepare() override {
    const Value& image = *inputs[kImage];
    RequireType(image, "image", Type::kFloat32);
    Require(image.shape.size() == 4 && image.shape[3] == chain_.params.channels,
            "image must be [N, H, W, " + std::to_string(chain_.params.channels) + "], found " + ShapeText(image.shape));
    const Value& filter = *inputs[kFilter];
    Require(filter.is_constant && filter.Elements() == chain_.params.out_channels * chain_.params.FanIn(),
            "the filter must be a constant");
    for (const Value* inner : values_.inner) {
      Require(inner->is_private, "'" + inner->name + "' is padding inside of an int8 stem and cannot be an output");
    }
    params_ = chain_.params;
    size_ = StemSize{};
    size_.batch = image.shape[0];
    size_.in_height = image.shape[1];
    size_.in_width = image.shape[2];
    SetPads();
    const std::string error = FitStem(params_, &size_);
    Require(error.empty(), error);
    const int64_t n = size_.batch, channels = params_.out_channels;
    SetShape(values_.quantized, {n, size_.folded_height, size_.folded_width, params_.FilterChannels()});
    SetShape(values_.convolved, {n, size_.conv_height, size_.conv_width, channels});
    SetShape(values_.pooled, {n, size_.out_height, size_.out_width, channels});
    output->shape = {n, size_.out_height, size_.out_width, channels};
    RequireProportion();
  }

  void Build(const char* kernel) override {
    std::string error;
    const StemWeights weights{inputs[kFilter]->As<const int8_t>(), chain_.filter_scale.data(),
                              inputs[kBias]->As<const int32_t>()};
    stem_ = Stem::Create(params_, weights, fusion.steps.tail(), kernel, &error);
    Require(stem_ != nullptr, error);
    error = stem_->Fit(&size_);
    Require(error.empty(), error);
    workspace_bytes = size_.workspace_bytes;
  }

  void Run(const RunContext& context) const override {
    StemTensors tensors{};
    tensors.image = inputs[kImage]->As<const float>();
    if (HasFloats()) tensors.output = fusion.output->As<float>();
    if (fusion.steps.residual() != nullptr) tensors.residual = fusion.steps.residual()->As<const float>();
    if (fusion.bits != nullptr) tensors.bits = fusion.bits->As<uint32_t>();
    if (IsWritten(values_.quantized)) tensors.quantized = values_.quantized->As<int8_t>();
    if (IsWritten(values_.convolved)) tensors.convolved = values_.convolved->As<int8_t>();
    if (IsWritten(values_.pooled)) tensors.pooled = values_.pooled->As<int8_t>();
    stem_->Run(size_, tensors, context.workspace, context.parallel);
  }

  std::vector<const Value*> Reads() const override {
    std::vector<const Value*> reads = Op::Reads();
    if (fusion.steps.residual() != nullptr) reads.push_back(fusion.steps.residual());
    return reads;
  }

  std::vector<Value*> Writes() const override {
    std::vector<Value*> writes{fusion.output};
    if (fusion.bits != nullptr) writes.push_back(fusion.bits);
    for (Value* codes : {values_.quantized, values_.convolved, values_.pooled}) {
      if (IsWritten(codes) && codes != output) writes.push_back(codes);
    }
    return writes;
  }

  bool CanPad(const int64_t*) const override { return false; }
  bool CanFuseTail() const override { return HasFloats(); }
  bool CanWriteBits() const override { return true; }
  bool CanCompare(const Fusion&) override { return false; }

 private:
  enum Input : size_t { kImage, kFilter, kBias };

  bool HasFloats() const { return chain_.floats != kOptionalTensor; }
  bool IsWritten(const Value* codes) const { return codes != nullptr && (codes == output || !codes->is_private); }

  static void SetShape(Value* value, const std::vector<int64_t>& shape) {
    if (value != nullptr) value->shape = shape;
  }

  // Sets the pads of SAME for this size.
  void SetPads() {
    int64_t size[2] = {size_.in_height / params_.fold, size_.in_width / params_.fold};
    for (int axis = 0; axis < 2; ++axis) {
      if (size[axis] < 1) continue;  // FitStem reports it
      SetPads(chain_.conv_is_same, axis, size[axis], &params_.conv);
      const int64_t count = params_.conv.Count(axis, size[axis]);
      if (params_.pools && count > 0) SetPads(chain_.pool_is_same, axis, count, &params_.pool);
    }
  }

  static void SetPads(bool is_same, int axis, int64_t size, KernelWindow* window) {
    if (!is_same) return;
    const PaddedAxis windows = PaddedAxis::For(size, window->kernel[axis], window->strides[axis], true);
    window->pads[axis] = windows.before;
    window->pads[axis + 2] = windows.after;
  }

  const StemChain chain_;
  const StemValues values_;
  StemParams params_;
  StemSize size_{};
  std::unique_ptr<Stem> stem_;
};

}  // namespace

std::unique_ptr<Op> MakeStem(StemChain chain, const StemValues& values) {
  return std::make_unique<StemOp>(std::move(chain), values);
}

}  // namespace bnnedge::tflite
