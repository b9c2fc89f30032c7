// LceBconv2d. LCE's arithmetic, which this follows to the bit, in steps, with p the differing bits of a window and
// K = kh * kw * channels / groups:
//   1. s = K - 2 p, a = clamp(s, low, high) by the fused activation, in integers;
//   2. float: y = a * gamma[o] + beta[o]; int8: y / scale + zero_point, rounded half away from zero, saturated;
//   3. bits: 1 where p > tau[o]; gamma, beta and the activation do not count.
// Fused: with v = 2 p = K - s, clamp(v, K - high, K - low) * (-gamma / scale) + ((beta + K * gamma) / scale + zero_point),
// both factors formed in double and rounded to float once. The order decides about the last bit, so it is kept.
//
// Zero-padding: an outside tap counts half of its channels as differing bits, i.e. v grows by all of them, and s by 0.
// It is exact for odd channel counts too, where LCE's reference kernel rounds, and for filters that reach beyond the
// whole map, where its other kernels leave the padding out.
#include <algorithm>
#include <cmath>
#include <utility>

#include "op.h"

namespace bnnedge::tflite {
namespace {

constexpr char kCode[] = "LceBconv2d";
// v = 2 p is an int32.
constexpr int64_t kMaxFanIn = (int64_t{1} << 30) - 1;
// A filter dilated to a multiple of its map needs a padded copy of the map out of all proportion.
constexpr int64_t kFreeWorkspaceBytes = int64_t{256} << 20;
constexpr int64_t kWorkspacePerByte = 16;

enum Activation : int64_t { kNone = 0, kRelu = 1, kReluN1To1 = 2, kRelu6 = 3 };

class BConv : public Op {
 public:
  explicit BConv(const FlexMap& options) {
    p_.channels = Option(options, kCode, "channels_in", 1, kMaxOption);
    p_.dilation_height = Option(options, kCode, "dilation_height_factor", 1, kMaxOption);
    p_.dilation_width = Option(options, kCode, "dilation_width_factor", 1, kMaxOption);
    p_.pad_value = Option(options, kCode, "pad_values", 0, 1);
    p_.stride_height = Option(options, kCode, "stride_height", 1, kMaxOption);
    p_.stride_width = Option(options, kCode, "stride_width", 1, kMaxOption);
    same_ = Option(options, kCode, "padding", 0, 1) == 0;
    // LCE takes any other activation for none.
    activation_ = Option(options, kCode, "fused_activation_function", INT32_MIN, INT32_MAX);
  }

  const char* code() const override { return kCode; }

  void Prepare(const char* kernel) override {
    if (conv_ == nullptr) CheckConstants();
    const std::vector<int64_t>& shape = inputs[kInput]->shape;
    Require(shape.size() == 4, "input must be [N, H, W, words], found " + ShapeText(shape));
    Require(shape[3] == p_.InWords(), std::to_string(p_.channels) + " channels take " + std::to_string(p_.InWords()) +
                                          " words, found input " + ShapeText(shape));
    const Windows rows = Windows::Of(shape[1], Extent(p_.kernel_height, p_.dilation_height), p_.stride_height, same_);
    const Windows columns = Windows::Of(shape[2], Extent(p_.kernel_width, p_.dilation_width), p_.stride_width, same_);
    Require(rows.count >= 1 && columns.count >= 1, "the filter does not fit into input " + ShapeText(shape));
    Resize(shape, rows, columns, kernel);
    const int64_t channels = output->Is(Type::kInt32) ? WordsFor(p_.out_channels) : p_.out_channels;
    output->shape = {shape[0], rows.count, columns.count, channels};
    CheckWorkspace();
  }

  void Run(const RunContext& context) const override {
    conv_->Run({inputs[kInput]->As<const uint32_t>(), output->data}, context.workspace, context.parallel);
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

  // Set ones would count as differing channels.
  void CheckSpareBits(const Value& filter) const {
    const int64_t used = p_.GroupChannels() % kWordBits, words = filter.Channels(), count = filter.Elements();
    if (used == 0) return;
    const uint32_t* const bits = filter.As<const uint32_t>();
    for (int64_t i = words - 1; i < count; i += words) {
      if (bits[i] >> used == 0) continue;
      Fail("the filter has bits beyond its " + std::to_string(p_.GroupChannels()) + " channels; export the model again");
    }
  }

  // Per-channel parameters of input `which`.
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
    transform_ = Transform{};
    transform_.domain = Domain::kDoubledPopcount;
    if (output->Is(Type::kInt32)) {
      transform_.kind = OutputKind::kBits;
      const int32_t* const tau = PerChannel<int32_t>(kThreshold, "threshold", Type::kInt32);
      // p > tau is 2 p > 2 tau; a threshold beyond int32 decides as the last one does.
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

  // The padding of SAME depends on the size, so a prepared convolution serves another size only if it stays the same.
  void Resize(const std::vector<int64_t>& shape, const Windows& rows, const Windows& columns, const char* kernel) {
    BConv2dParams wanted = p_;
    wanted.batch = shape[0];
    wanted.in_height = shape[1];
    wanted.in_width = shape[2];
    wanted.pad_top = rows.before;
    wanted.pad_bottom = rows.after;
    wanted.pad_left = columns.before;
    wanted.pad_right = columns.after;
    const bool same_padding = conv_ != nullptr && p_.pad_top == rows.before && p_.pad_bottom == rows.after &&
                              p_.pad_left == columns.before && p_.pad_right == columns.after;
    std::string error;
    if (same_padding) {
      error = conv_->Resize(shape[0], shape[1], shape[2]);
    } else {
      CheckPaddedSize(wanted);
      conv_ = Conv::Create(wanted, inputs[kFilter]->As<const uint32_t>(), transform_, kernel, &error);
    }
    if (!error.empty() || conv_ == nullptr) {
      conv_.reset();
      Fail(error);
    }
    p_ = wanted;
  }

  int64_t WorkspaceLimit(const BConv2dParams& p) const {
    const int64_t pixels = p.batch * p.OutHeight() * p.OutWidth();
    return kFreeWorkspaceBytes + kWorkspacePerByte * 4 * (inputs[kInput]->Elements() + pixels);
  }

  void CheckPaddedSize(const BConv2dParams& p) const {
    const double height = static_cast<double>(p.in_height + p.pad_top + p.pad_bottom);
    const double width = static_cast<double>(p.in_width + p.pad_left + p.pad_right);
    const double bytes = 4.0 * static_cast<double>(p.InWords()) * height * width;
    Require(bytes <= static_cast<double>(WorkspaceLimit(p)),
            "the dilated filter reaches too far beyond input " + ShapeText(inputs[kInput]->shape));
  }

  void CheckWorkspace() {
    workspace_bytes = conv_->WorkspaceBytes();
    Require(workspace_bytes >= 0 && workspace_bytes <= WorkspaceLimit(p_) * static_cast<int64_t>(sizeof(float)),
            "needs " + std::to_string(workspace_bytes) + " bytes of workspace, which is out of proportion");
  }

  BConv2dParams p_{};
  int64_t activation_ = kNone;
  bool same_;
  int64_t fan_in_ = 0;
  Transform transform_;
  std::unique_ptr<Conv> conv_;
};

}  // namespace

std::unique_ptr<Op> MakeBConv2d(const FlexMap& options) { return std::make_unique<BConv>(options); }

}  // namespace bnnedge::tflite
