// ADD and SUB with broadcasting, and RELU_N1_TO_1, alone or as the activation of these: one float operation an element,
// each rounded by itself, so that the result is that of any other implementation. A NaN stays one through a clip.
#include <algorithm>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "fuse.h"

namespace bnnedge::tflite {
namespace {

constexpr float kLow = -1.0f, kHigh = 1.0f;

// In place too.
void ClipAll(const float* from, int64_t count, float* to) {
  int64_t i = 0;
#if defined(__SSE2__)
  // Both instructions return their second operand if one is NaN, which compilers do not make of the loop below.
  const __m128 low = _mm_set1_ps(kLow), high = _mm_set1_ps(kHigh);
  for (; i + 4 <= count; i += 4) {
    _mm_storeu_ps(to + i, _mm_min_ps(high, _mm_max_ps(low, _mm_loadu_ps(from + i))));
  }
#endif
  for (; i < count; ++i) {
    const float raised = from[i] < kLow ? kLow : from[i];
    to[i] = raised > kHigh ? kHigh : raised;
  }
}

template <bool subtracts>
float Combined(float a, float b) {
  return subtracts ? a - b : a + b;
}

// to[i] = a[i or 0] +- b[i or 0]. Three loops, because a step that is known makes them vectors. `a` may be `b`.
template <bool subtracts>
void CombineAll(const float* a, bool a_moves, const float* b, bool b_moves, int64_t count, float* __restrict to) {
  if (a_moves && b_moves) {
    for (int64_t i = 0; i < count; ++i) to[i] = Combined<subtracts>(a[i], b[i]);
  } else if (a_moves) {
    const float other = *b;
    for (int64_t i = 0; i < count; ++i) to[i] = Combined<subtracts>(a[i], other);
  } else if (b_moves) {
    const float other = *a;
    for (int64_t i = 0; i < count; ++i) to[i] = Combined<subtracts>(other, b[i]);
  } else {
    std::fill_n(to, count, Combined<subtracts>(*a, *b));
  }
}

class Arithmetic : public PixelwiseOp {
 public:
  Arithmetic(bool subtracts, bool clips) : subtracts_(subtracts), clips_(clips) {}

  const char* code() const override { return subtracts_ ? "SUB" : "ADD"; }

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

  bool JoinTail(const Value& y, TailSteps* steps) const override {
    const bool is_first = inputs[0] == &y;
    const Value& other = *inputs[is_first ? 1 : 0];
    if (&other == &y || output->shape != y.shape || (subtracts_ && !is_first)) return false;
    const bool is_per_channel = other.is_constant && other.Elements() == y.Channels() && other.Channels() == y.Channels();
    const bool is_whole = other.Elements() == y.Elements();
    // y - c is y + -c, exactly.
    const bool joins = (is_per_channel && steps->Shift(other, subtracts_ ? -1.0f : 1.0f)) ||
                       (!subtracts_ && (is_whole || other.is_constant) && steps->AddResidual(other));
    return joins && (!clips_ || steps->Clip(kLow, kHigh));
  }

 private:
  static constexpr size_t kOperands = 2;

  // Where the numbers for an output pixel begin in a broadcast input.
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
    std::vector<int64_t> steps;  // an axis of the output, 0 where the input repeats
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
    if (subtracts_) {
      CombineAll<true>(a, a_moves, b, b_moves, count, to);
    } else {
      CombineAll<false>(a, a_moves, b, b_moves, count, to);
    }
    if (clips_) ClipAll(to, count, to);
  }

  const bool subtracts_, clips_;
  Operand operands_[kOperands];
};

class Clip : public PixelwiseOp {
 public:
  const char* code() const override { return "RELU_N1_TO_1"; }

  void Prepare() override {
    Require(inputs.size() == 1 && inputs[0] != nullptr, "needs 1 input, found " + std::to_string(inputs.size()));
    RequireType(*inputs[0], "input", Type::kFloat32);
    RequireType(*output, "output", Type::kFloat32);
    Require(!inputs[0]->shape.empty(), "input must have at least one axis");
    output->shape = inputs[0]->shape;
  }

  bool JoinTail(const Value&, TailSteps* steps) const override { return steps->Clip(kLow, kHigh); }

  void RunPixels(int64_t first, int64_t count) const override {
    const int64_t channels = output->Channels();
    ClipAll(inputs[0]->As<const float>() + first * channels, count * channels, output->As<float>() + first * channels);
  }
};

}  // namespace

std::unique_ptr<Op> MakeArithmetic(bool subtracts, int activation) {
  return std::make_unique<Arithmetic>(subtracts, activation == kActivationReluN1To1);
}
std::unique_ptr<Op> MakeClip() { return std::make_unique<Clip>(); }

}  // namespace bnnedge::tflite
