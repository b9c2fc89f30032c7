// LceBconv2d, bit for bit in the arithmetic of LCE. Let p be the number of differing bits of a window and
// K = kh * kw * channels / groups.
//   1. s = K - 2 p, and a = clamp(s, low, high) by the fused activation, in integers.
//   2. A float output is y = a * gamma[o] + beta[o], an int8 output is y / scale + zero_point, rounded half away from
//      zero and saturated.
//   3. A bit of the output is 1 where p > tau[o]; gamma, beta and the activation do not matter.
//   4. Steps 1 and 2 in one, with v = 2 p = K - s:
//        clamp(v, K - high, K - low) * (-gamma / scale) + ((beta + K * gamma) / scale + zero_point)
//      Both factors are computed in double and rounded to float once. The order of these operations decides about the
//      last bit, so it is LCE's.
//   5. In zero-padding, half of the channels of a tap outside count as differing bits: v grows by all of them, s by 0.
//      This is exact for odd numbers of channels too, where LCE's reference kernel rounds, and for filters that reach
//      beyond the whole map, where its other kernels leave the padding out.
#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "../workspace.h"
#include "fuse.h"
#include "signs.h"

namespace bnnedge::tflite {
namespace {

constexpr char kCode[] = "LceBconv2d";
// The largest K for which v = 2 p is an int32.
constexpr int64_t kMaxFanIn = (int64_t{1} << 30) - 1;
// A kernel may keep so many words of workspace for each word of the padded image.
constexpr int64_t kWorkspaceWords = 4;

enum Activation : int64_t { kNone = 0, kRelu = 1, kReluN1To1 = 2, kRelu6 = 3 };

class BConv : public ConvOp {
 public:
  explicit BConv(const FlexMap& options) {
    p_.channels = Option(options, kCode, "channels_in", 1, kMaxOption);
    p_.dilation_height = Option(options, kCode, "dilation_height_factor", 1, kMaxOption);
    p_.dilation_width = Option(options, kCode, "dilation_width_factor", 1, kMaxOption);
    p_.pad_value = Option(options, kCode, "pad_values", 0, 1);
    p_.stride_height = Option(options, kCode, "stride_height", 1, kMaxOption);
    p_.stride_width = Option(options, kCode, "stride_width", 1, kMaxOption);
    same_ = Option(options, kCode, "padding", 0, 1) == 0;
    // LCE treats any other activation as none.
    activation_ = Option(options, kCode, "fused_activation_function", INT32_MIN, INT32_MAX);
  }

  const char* code() const override { return kCode; }

  void Prepare() override {
    if (!is_checked_) CheckConstants();
    is_checked_ = true;
    const std::vector<int64_t>& shape = inputs[kInput]->shape;
    Require(shape.size() == 4, "input must be [N, H, W, words], found " + ShapeText(shape));
    Require(shape[3] == p_.InWords(), std::to_string(p_.channels) + " channels take " + std::to_string(p_.InWords()) +
                                          " words, found input " + ShapeText(shape));
    const PaddedAxis rows =
        PaddedAxis::For(shape[1], Extent(p_.kernel_height, p_.dilation_height), p_.stride_height, same_);
    const PaddedAxis columns =
        PaddedAxis::For(shape[2], Extent(p_.kernel_width, p_.dilation_width), p_.stride_width, same_);
    Require(rows.count >= 1 && columns.count >= 1, "the filter does not fit into input " + ShapeText(shape));
    SetSize(shape, {rows.before, rows.after, columns.before, columns.after}, &p_);
    CheckPaddedSize();
    const int64_t channels = output->Is(Type::kInt32) ? WordsFor(p_.out_channels) : p_.out_channels;
    output->shape = {shape[0], rows.count, columns.count, channels};
  }

  void Build(const char* kernel) override {
    BConv2dParams params = FusedParams(fusion);
    OutputTransform transform = transform_;
    std::vector<bool> negated;
    if (fusion.output == nullptr) {
      transform = OutputTransform{};
      transform.domain = Domain::kDoubledPopcount;
      transform.kind = OutputKind::kBits;
      transform.threshold = signs_.threshold;
      params.pad_value = signs_.pad_value;
      negated = signs_.negated;
    } else {
      transform.tail = fusion.steps.tail();
    }
    Make(params, transform, negated, kernel);
    CheckWorkspace();
  }

  void Run(const RunContext& context) const override {
    ConvTensors tensors{fusion.input->As<const uint32_t>(), nullptr};
    if (fusion.output == nullptr) {
      tensors.output = fusion.bits->data;
    } else {
      tensors.output = fusion.output->data;
      if (fusion.steps.residual() != nullptr) tensors.residual = fusion.steps.residual()->As<const float>();
      if (fusion.bits != nullptr) tensors.bits = fusion.bits->As<uint32_t>();
    }
    conv_->Run(tensors, context.workspace, context.parallel);
  }

  std::vector<const Value*> Reads() const override {
    std::vector<const Value*> reads{fusion.input};
    if (fusion.output != nullptr && fusion.steps.residual() != nullptr) reads.push_back(fusion.steps.residual());
    return reads;
  }

  std::vector<Value*> Writes() const override {
    std::vector<Value*> writes;
    for (Value* value : {fusion.output, fusion.bits}) {
      if (value != nullptr) writes.push_back(value);
    }
    return writes;
  }

  const Value* InPlace() const override { return fusion.output == nullptr ? nullptr : fusion.steps.residual(); }

  bool CanPad(const int64_t* pads) const override {
    const int64_t height = Extent(p_.kernel_height, p_.dilation_height);
    const int64_t width = Extent(p_.kernel_width, p_.dilation_width);
    return !same_ && std::max(pads[0], pads[1]) < height && std::max(pads[2], pads[3]) < width;
  }

  bool CanFuseTail() const override { return transform_.kind == OutputKind::kFloat; }
  bool CanWriteBits() const override { return p_.groups == 1 || p_.out_channels / p_.groups % kWordBits == 0; }

  bool CanCompare(const Fusion& wanted) override {
    const uint32_t* const filter = inputs[kFilter]->As<const uint32_t>();
    return FindSigns(FusedParams(wanted), filter, transform_, wanted.steps, &signs_);
  }

 private:
  enum Input : size_t { kInput, kFilter, kMultiplier, kBias, kThreshold, kInputs };

  static int64_t Extent(int64_t kernel, int64_t dilation) { return (kernel - 1) * dilation + 1; }

  void CheckConstants() {
    Require(inputs.size() == kInputs, "needs 5 inputs, found " + std::to_string(inputs.size()));
    Require(inputs[kInput] != nullptr && inputs[kFilter] != nullptr, "input and filter must be there");
    RequireType(*inputs[kInput], "input", Type::kInt32);
    const Value& filter = *inputs[kFilter];
    RequireType(filter, "filter", Type::kInt32);
    Require(filter.is_constant, "the filter must be a constant");
    Require(filter.shape.size() == 4, "filter must be [O, kh, kw, words], found " + ShapeText(filter.shape));
    p_.out_channels = filter.shape[0];
    p_.kernel_height = filter.shape[1];
    p_.kernel_width = filter.shape[2];
    const int64_t words = filter.shape[3];
    Require(words >= 1 && p_.InWords() % words == 0,
            std::to_string(p_.channels) + " channels do not divide into groups of filter " + ShapeText(filter.shape));
    p_.groups = p_.InWords() / words;
    filter.Elements();
    const int64_t taps = p_.kernel_height * p_.kernel_width;
    Require(p_.channels % p_.groups == 0 && taps <= kMaxFanIn / p_.GroupChannels(),
            "channels must divide into " + std::to_string(p_.groups) +
                " groups, and one output must sum fewer than 2^30 products; found filter " + ShapeText(filter.shape));
    fan_in_ = taps * p_.GroupChannels();
    CheckSpareBits(filter);
    MakeTransform();
  }

  // Spare bits that are set would count as differing channels.
  void CheckSpareBits(const Value& filter) const {
    const int64_t used = p_.GroupChannels() % kWordBits, words = filter.Channels(), count = filter.Elements();
    if (used == 0) return;
    const uint32_t* const bits = filter.As<const uint32_t>();
    for (int64_t i = words - 1; i < count; i += words) {
      if (bits[i] >> used == 0) continue;
      Fail("the filter has bits beyond its " + std::to_string(p_.GroupChannels()) +
           " channels; export the model again");
    }
  }

  // The parameters of all channels that are input `which`.
  template <typename T>
  const T* PerChannel(Input which, const char* role, Type type) const {
    Require(inputs[which] != nullptr, std::string("needs a ") + role + " for its output type");
    const Value& value = *inputs[which];
    RequireType(value, role, type);
    Require(value.is_constant, std::string("the ") + role + " must be a constant");
    Require(value.shape.size() == 1 && value.shape[0] == p_.out_channels,
            std::string(role) + " must be [" + std::to_string(p_.out_channels) + "], found " + ShapeText(value.shape));
    return value.As<const T>();
  }

  void MakeTransform() {
    transform_ = OutputTransform{};
    transform_.domain = Domain::kDoubledPopcount;
    if (output->Is(Type::kInt32)) {
      transform_.kind = OutputKind::kBits;
      const int32_t* const tau = PerChannel<int32_t>(kThreshold, "threshold", Type::kInt32);
      // p > tau means 2 p > 2 tau, and thresholds beyond int32 decide like the last one.
      for (int64_t o = 0; o < p_.out_channels; ++o) {
        const int64_t doubled = std::clamp<int64_t>(int64_t{2} * tau[o], INT32_MIN, INT32_MAX);
        transform_.threshold.push_back(static_cast<int32_t>(doubled));
      }
      return;
    }
    Require(output->Is(Type::kFloat32) || output->Is(Type::kInt8),
            "output must be float32, int8 or int32 (bits), found " + TypeName(output->type));
    transform_.kind = output->Is(Type::kInt8) ? OutputKind::kInt8 : OutputKind::kFloat;
    MakeAffine();
    const auto [low, high] = ActivationRange();
    transform_.clamp_low = static_cast<int32_t>(fan_in_ - high);
    transform_.clamp_high = static_cast<int32_t>(fan_in_ - low);
  }

  std::pair<int64_t, int64_t> ActivationRange() const {
    switch (activation_) {
      case kRelu:
        return {0, fan_in_};
      case kReluN1To1:
        return {-1, 1};
      case kRelu6:
        return {0, 6};
      default:
        return {-fan_in_, fan_in_};
    }
  }

  void MakeAffine() {
    double scale = 1.0, zero_point = 0.0;
    if (output->Is(Type::kInt8)) {
      Require(output->has_quantization && output->scale > 0.0f && std::isfinite(output->scale),
              "an int8 output needs a finite scale above 0");
      scale = static_cast<double>(output->scale);
      zero_point = static_cast<double>(output->zero_point);
    }
    const float* const gamma = PerChannel<float>(kMultiplier, "multiplier", Type::kFloat32);
    const float* const beta = PerChannel<float>(kBias, "bias", Type::kFloat32);
    for (int64_t o = 0; o < p_.out_channels; ++o) {
      const double multiplier = static_cast<double>(gamma[o]);
      const double shifted = static_cast<double>(beta[o]) + static_cast<double>(fan_in_) * multiplier;
      transform_.multiplier.push_back(static_cast<float>(-multiplier / scale));
      transform_.bias.push_back(static_cast<float>(shifted / scale + zero_point));
    }
  }

  // `pads` are top, bottom, left, right.
  static void SetSize(const std::vector<int64_t>& shape, const std::array<int64_t, 4>& pads, BConv2dParams* p) {
    p->batch = shape[0];
    p->in_height = shape[1];
    p->in_width = shape[2];
    p->pad_top = pads[0];
    p->pad_bottom = pads[1];
    p->pad_left = pads[2];
    p->pad_right = pads[3];
  }

  // The parameters, with the padding of a fused PAD.
  BConv2dParams FusedParams(const Fusion& wanted) const {
    BConv2dParams params = p_;
    if (wanted.pads == nullptr) return params;
    const int64_t* const pads = wanted.pads;
    SetSize(wanted.input->shape, {pads[0], pads[1], pads[2], pads[3]}, &params);
    params.pad_value = 1;
    return params;
  }

  // Makes the convolution, or resizes it: a prepared convolution serves all sizes with the same padding, which may
  // depend on the size in SAME.
  void Make(const BConv2dParams& params, const OutputTransform& transform, const std::vector<bool>& negated,
            const char* kernel) {
    std::string error;
    if (conv_ != nullptr && IsSame(params, made_params_) && IsSame(transform, made_transform_) &&
        negated == made_negated_) {
      error = conv_->Resize(params.batch, params.in_height, params.in_width);
    } else {
      const auto* const filter = inputs[kFilter]->As<const uint32_t>();
      const std::vector<uint32_t> complemented = Negated(p_, filter, negated);
      conv_ = Conv::Create(params, complemented.empty() ? filter : complemented.data(), transform, kernel, &error);
      made_params_ = params;
      made_transform_ = transform;
      made_negated_ = negated;
    }
    if (!error.empty() || conv_ == nullptr) {
      conv_.reset();
      Fail(error);
    }
  }

  static bool IsSame(const BConv2dParams& a, const BConv2dParams& b) {
    return a.pad_top == b.pad_top && a.pad_bottom == b.pad_bottom && a.pad_left == b.pad_left &&
           a.pad_right == b.pad_right && a.pad_value == b.pad_value;
  }

  static bool IsSame(const OutputTransform& a, const OutputTransform& b) {
    const Tail &s = a.tail, &t = b.tail;
    return a.kind == b.kind && a.threshold == b.threshold && s.adds_residual == t.adds_residual && s.slope == t.slope &&
           s.offset == t.offset && s.low == t.low && s.high == t.high && s.writes_bits == t.writes_bits &&
           s.limit == t.limit;
  }

  int64_t WorkspaceLimit(const BConv2dParams& p) const {
    const int64_t pixels = p.batch * p.OutHeight() * p.OutWidth();
    return ProportionateBytes(4 * (inputs[kInput]->Elements() + pixels));
  }

  void CheckPaddedSize() const {
    const double height = static_cast<double>(p_.in_height + p_.pad_top + p_.pad_bottom);
    const double width = static_cast<double>(p_.in_width + p_.pad_left + p_.pad_right);
    const double bytes = 4.0 * static_cast<double>(p_.InWords()) * height * width;
    Require(bytes <= static_cast<double>(WorkspaceLimit(p_)),
            "the dilated filter reaches too far beyond input " + ShapeText(inputs[kInput]->shape));
  }

  void CheckWorkspace() {
    workspace_bytes = conv_->WorkspaceBytes();
    Require(workspace_bytes >= 0 && workspace_bytes <= kWorkspaceWords * WorkspaceLimit(p_),
            "needs " + std::to_string(workspace_bytes) + " bytes of workspace, which is out of proportion");
  }

  BConv2dParams p_{};
  int64_t activation_ = kNone;
  bool same_;
  int64_t fan_in_ = 0;
  bool is_checked_ = false;
  OutputTransform transform_;  // without fused operators
  Signs signs_;                // for a fusion without a float output
  // The convolution that was made last, and the arguments it was made with.
  std::unique_ptr<Conv> conv_;
  BConv2dParams made_params_{};
  OutputTransform made_transform_;
  std::vector<bool> made_negated_;
};

}  // namespace

std::unique_ptr<Op> MakeBConv2d(const FlexMap& options) { return std::make_unique<BConv>(options); }

}  // namespace bnnedge::tflite
