// ADD, SUB and MUL with broadcasting, PRELU, and clips, alone or as the activation of the others. Every operation
// rounds once, so that any other implementation has the same results. As in XNNPACK, a clip does not change NaN and
// -0.0.
#include <algorithm>
#include <cmath>

#include "fuse.h"
#include "range.h"

namespace bnnedge::tflite {
namespace {

template <Builtin code>
float Combined(float a, float b) {
  return code == Builtin::kMul ? a * b : code == Builtin::kSub ? a - b : a + b;
}

// to[i] = a[i or 0] op b[i or 0]. There are three loops because compilers vectorise known steps. `a` may be `b`.
template <Builtin code>
void CombineAll(const float* a, bool a_moves, const float* b, bool b_moves, int64_t count, float* __restrict to) {
  if (a_moves && b_moves) {
    for (int64_t i = 0; i < count; ++i) to[i] = Combined<code>(a[i], b[i]);
  } else if (a_moves) {
    const float other = *b;
    for (int64_t i = 0; i < count; ++i) to[i] = Combined<code>(a[i], other);
  } else if (b_moves) {
    const float other = *a;
    for (int64_t i = 0; i < count; ++i) to[i] = Combined<code>(other, b[i]);
  } else {
    std::fill_n(to, count, Combined<code>(*a, *b));
  }
}

// Whether `value` holds one constant for each channel of `map`.
bool IsPerChannel(const Value& value, const Value& map) {
  return value.is_constant && value.Elements() == map.Channels() && value.Channels() == map.Channels();
}

class Arithmetic : public PixelwiseOp {
 public:
  Arithmetic(Builtin code, Range range) : code_(code), range_(range) {}

  const char* code() const override { return code_ == Builtin::kMul ? "MUL" : code_ == Builtin::kSub ? "SUB" : "ADD"; }

  void Prepare() override {
    Require(inputs.size() == kOperands && inputs[0] != nullptr && inputs[1] != nullptr,
            "needs 2 inputs, found " + std::to_string(inputs.size()));
    for (const Value* input : inputs) {
      RequireType(*input, "input", Type::kFloat32);
      Require(!input->shape.empty(), "inputs must have at least one axis");
      input->Elements();
    }
    RequireType(*output, "output", Type::kFloat32);
    output->shape = BroadcastShape(inputs[0]->shape, inputs[1]->shape);
    RequireProportion();
    for (size_t k = 0; k < kOperands; ++k) operands_[k] = Operand(*inputs[k], output->shape);
  }

  void RunPixels(int64_t first, int64_t count) const override {
    const int64_t channels = output->Channels();
    float* to = output->As<float>() + first * channels;
    const auto *const a = inputs[0]->As<const float>(), *const b = inputs[1]->As<const float>();
    if (operands_[0].is_whole && operands_[1].is_whole) {
      Combine(a + first * channels, true, b + first * channels, true, count * channels, to);
      return;
    }
    for (int64_t pixel = first; pixel < first + count; ++pixel, to += channels) {
      Combine(a + operands_[0].Offset(pixel, output->shape), operands_[0].has_channels,
              b + operands_[1].Offset(pixel, output->shape), operands_[1].has_channels, channels, to);
    }
  }

  bool JoinTail(const Value& y, TailBuilder* steps) const override {
    const bool is_first = inputs[0] == &y;
    const Value& other = *inputs[is_first ? 1 : 0];
    const bool adds = code_ == Builtin::kAdd;
    if (&other == &y || output->shape != y.shape || !(adds || (code_ == Builtin::kSub && is_first))) return false;
    const bool is_whole = other.Elements() == y.Elements();
    // y - c equals y + -c exactly.
    const bool joins = (IsPerChannel(other, y) && steps->Shift(other, adds ? 1.0f : -1.0f)) ||
                       (adds && (is_whole || other.is_constant) && steps->AddResidual(other));
    return joins && (range_.IsAll() || steps->Clip(range_.low, range_.high));
  }

 private:
  static constexpr size_t kOperands = 2;

  // Computes where the values for an output pixel begin in an input that is broadcast.
  struct Operand {
    Operand() = default;
    Operand(const Value& value, const std::vector<int64_t>& out)
        : is_whole(value.Elements() == Product(out)), has_channels(value.Channels() == out.back()) {
      steps.assign(out.size(), 0);
      int64_t step = value.Channels();
      const size_t missing = out.size() - value.shape.size();
      for (size_t axis = out.size() - 1; axis-- > missing;) {
        const int64_t size = value.shape[axis - missing];
        steps[axis] = size == 1 ? 0 : step;
        step *= size;
      }
    }

    static int64_t Product(const std::vector<int64_t>& shape) {
      int64_t product = 1;
      for (const int64_t size : shape) product *= size;
      return product;
    }

    int64_t Offset(int64_t pixel, const std::vector<int64_t>& out) const {
      if (is_whole) return pixel * out.back();
      int64_t offset = 0;
      for (size_t axis = out.size() - 1; axis-- > 0; pixel /= out[axis]) offset += pixel % out[axis] * steps[axis];
      return offset;
    }

    bool is_whole = false, has_channels = false;
    std::vector<int64_t> steps;  // for each axis of the output, 0 where the input repeats
  };

  std::vector<int64_t> BroadcastShape(const std::vector<int64_t>& a, const std::vector<int64_t>& b) const {
    const std::vector<int64_t>&longer = a.size() >= b.size() ? a : b, &shorter = a.size() >= b.size() ? b : a;
    std::vector<int64_t> shape = longer;
    for (size_t i = 0; i < shorter.size(); ++i) {
      int64_t& size = shape[shape.size() - 1 - i];
      const int64_t other = shorter[shorter.size() - 1 - i];
      Require(size == other || size == 1 || other == 1,
              "inputs " + ShapeText(a) + " and " + ShapeText(b) + " do not broadcast");
      size = std::max(size, other);
    }
    return shape;
  }

  void Combine(const float* a, bool a_moves, const float* b, bool b_moves, int64_t count, float* to) const {
    if (code_ == Builtin::kMul) {
      CombineAll<Builtin::kMul>(a, a_moves, b, b_moves, count, to);
    } else if (code_ == Builtin::kSub) {
      CombineAll<Builtin::kSub>(a, a_moves, b, b_moves, count, to);
    } else {
      CombineAll<Builtin::kAdd>(a, a_moves, b, b_moves, count, to);
    }
    if (!range_.IsAll()) range_.ClipAll(to, count, to);
  }

  const Builtin code_;
  const Range range_;
  Operand operands_[kOperands];
};

// An operator that reads one float map and constants.
class MapOp : public PixelwiseOp {
 protected:
  void CheckMap(size_t which, size_t count) {
    Require(inputs.size() == count && std::count(inputs.begin(), inputs.end(), nullptr) == 0,
            "needs " + std::to_string(count) + (count == 1 ? " input" : " inputs") + ", found " +
                std::to_string(inputs.size()));
    for (const Value* input : inputs) RequireType(*input, "input", Type::kFloat32);
    RequireType(*output, "output", Type::kFloat32);
    Require(!inputs[which]->shape.empty(), "input must have at least one axis");
    output->shape = inputs[which]->shape;
  }
};

class Clip : public MapOp {
 public:
  explicit Clip(Builtin code) : code_(code) {
    range_ = Range::OfActivation(code == Builtin::kRelu    ? kActivationRelu
                                 : code == Builtin::kRelu6 ? kActivationRelu6
                                                           : kActivationReluN1To1);
  }

  const char* code() const override {
    return code_ == Builtin::kRelu ? "RELU" : code_ == Builtin::kRelu6 ? "RELU6" : "RELU_N1_TO_1";
  }

  void Prepare() override { CheckMap(0, 1); }

  bool JoinTail(const Value&, TailBuilder* steps) const override { return steps->Clip(range_.low, range_.high); }

  void RunPixels(int64_t first, int64_t count) const override {
    const int64_t channels = output->Channels();
    const auto* const from = inputs[0]->As<const float>() + first * channels;
    range_.ClipAll(from, count * channels, output->As<float>() + first * channels);
  }

 private:
  const Builtin code_;
  Range range_;
};

// MAXIMUM and MINIMUM of a map and one number.
class Bound : public MapOp {
 public:
  explicit Bound(Builtin code) : raises_(code == Builtin::kMaximum) {}

  const char* code() const override { return raises_ ? "MAXIMUM" : "MINIMUM"; }

  void Prepare() override {
    Require(inputs.size() == 2 && inputs[0] != nullptr && inputs[1] != nullptr,
            "needs 2 inputs, found " + std::to_string(inputs.size()));
    map_ = IsNumber(*inputs[1]) ? 0 : 1;
    CheckMap(map_, 2);
    const Value& number = *inputs[1 - map_];
    Require(IsNumber(number) && number.shape.size() <= output->shape.size(),
            "one input must be a constant number, found " + ShapeText(number.shape));
    const float value = *number.As<const float>();
    Require(!std::isnan(value), "the constant must be a number, found NaN");
    (raises_ ? range_.low : range_.high) = value;
  }

  bool JoinTail(const Value&, TailBuilder* steps) const override { return steps->Clip(range_.low, range_.high); }

  void RunPixels(int64_t first, int64_t count) const override {
    const int64_t channels = output->Channels();
    const auto* const from = inputs[map_]->As<const float>() + first * channels;
    range_.ClipAll(from, count * channels, output->As<float>() + first * channels);
  }

 private:
  static bool IsNumber(const Value& value) { return value.is_constant && value.Elements() == 1; }

  const bool raises_;
  size_t map_ = 0;
  Range range_;
};

// PRELU: y < 0 ? slope[o] * y : y.
class PRelu : public MapOp {
 public:
  const char* code() const override { return "PRELU"; }

  void Prepare() override {
    CheckMap(0, 2);
    Require(IsPerChannel(*inputs[1], *inputs[0]), "the slope must be a constant [" +
                                                      std::to_string(output->Channels()) + "], found " +
                                                      ShapeText(inputs[1]->shape));
  }

  bool JoinTail(const Value& y, TailBuilder* steps) const override {
    return inputs[0] == &y && steps->Multiply(*inputs[1]);
  }

  void RunPixels(int64_t first, int64_t count) const override {
    const int64_t channels = output->Channels();
    const auto *from = inputs[0]->As<const float>() + first * channels, *const slope = inputs[1]->As<const float>();
    float* to = output->As<float>() + first * channels;
    for (int64_t pixel = 0; pixel < count; ++pixel, from += channels, to += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        const float product = slope[c] * from[c];
        to[c] = from[c] < 0.0f ? product : from[c];
      }
    }
  }
};

}  // namespace

std::unique_ptr<Op> MakeArithmetic(Builtin code, int activation) {
  return std::make_unique<Arithmetic>(code, Range::OfActivation(activation));
}
std::unique_ptr<Op> MakeClip(Builtin code) { return std::make_unique<Clip>(code); }
std::unique_ptr<Op> MakeBound(Builtin code) { return std::make_unique<Bound>(code); }
std::unique_ptr<Op> MakePRelu() { return std::make_unique<PRelu>(); }

}  // namespace bnnedge::tflite
