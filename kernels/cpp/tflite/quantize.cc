// LceQuantize packs the signs of numbers along the last axis, LceDequantize unpacks them.
#include <algorithm>
#include <cmath>

#include "op.h"

namespace bnnedge::tflite {
namespace {

class Quantize : public PixelwiseOp {
 public:
  const char* code() const override { return "LceQuantize"; }

  void Prepare() override {
    Require(inputs.size() == 1 && inputs[0] != nullptr, "needs 1 input, found " + std::to_string(inputs.size()));
    const Value& input = *inputs[0];
    Require(input.Is(Type::kFloat32) || input.Is(Type::kInt8) || input.Is(Type::kBool),
            "input must be float32, int8 or bool, found " + TypeName(input.type));
    RequireType(*output, "output", Type::kInt32);
    Require(!input.shape.empty(), "input must have at least one axis");
    output->shape = input.shape;
    output->shape.back() = WordsFor(input.Channels());
  }

  bool PacksFloatSigns() const override { return inputs[0]->Is(Type::kFloat32); }

  void RunPixels(int64_t first, int64_t count) const override {
    const Value& input = *inputs[0];
    const int64_t channels = input.Channels();
    uint32_t* const to = output->As<uint32_t>() + first * WordsFor(channels);
    if (input.Is(Type::kFloat32)) {
      PackNhwc(input.As<const float>() + first * channels, count, channels, to);
    } else {
      // True means +1, and false is below a zero point of 1.
      const int32_t zero_point = input.Is(Type::kBool) ? 1 : input.zero_point;
      PackNhwc(input.As<const int8_t>() + first * channels, zero_point, count, channels, to);
    }
  }
};

class Dequantize : public PixelwiseOp {
 public:
  const char* code() const override { return "LceDequantize"; }

  void Prepare() override {
    Require(inputs.size() == 1 && inputs[0] != nullptr, "needs 1 input, found " + std::to_string(inputs.size()));
    const Value& input = *inputs[0];
    RequireType(input, "input", Type::kInt32);
    Require(output->Is(Type::kFloat32) || output->Is(Type::kInt8) || output->Is(Type::kBool),
            "output must be float32, int8 or bool, found " + TypeName(output->type));
    // The words do not say how many channels there are, but the output's stored shape does.
    Require(!input.shape.empty() && output->shape.size() == input.shape.size() && output->Channels() >= 1 &&
                WordsFor(output->Channels()) == input.Channels(),
            "output shape " + ShapeText(output->shape) + " does not fit input words " + ShapeText(input.shape));
    std::copy(input.shape.begin(), input.shape.end() - 1, output->shape.begin());
    if (output->Is(Type::kInt8)) ChooseInt8();
  }

  void RunPixels(int64_t first, int64_t count) const override {
    const int64_t channels = output->Channels();
    const uint32_t* const from = inputs[0]->As<const uint32_t>() + first * WordsFor(channels);
    if (output->Is(Type::kFloat32)) {
      UnpackNhwc(from, count, channels, output->As<float>() + first * channels);
    } else {
      UnpackBytes(from, count, channels, output->As<int8_t>() + first * channels);
    }
  }

 private:
  // Computes the codes of +-1 in float, as LCE does.
  void ChooseInt8() {
    const float steps = std::round(1.0f / output->scale);
    Require(output->has_quantization && output->scale > 0.0f, "an int8 output needs a scale above 0");
    const float zero_point = static_cast<float>(output->zero_point);
    plus_ = static_cast<int8_t>(std::clamp(zero_point + steps, -128.0f, 127.0f));
    minus_ = static_cast<int8_t>(std::clamp(zero_point - steps, -128.0f, 127.0f));
  }

  void UnpackBytes(const uint32_t* words, int64_t pixels, int64_t channels, int8_t* values) const {
    for (int64_t pixel = 0; pixel < pixels; ++pixel, words += WordsFor(channels)) {
      for (int64_t c = 0; c < channels; ++c) {
        *values++ = (words[c / kWordBits] >> (c % kWordBits)) & 1u ? minus_ : plus_;
      }
    }
  }

  int8_t plus_ = 1, minus_ = 0;  // true and false, unless the output is int8
};

}  // namespace

std::unique_ptr<Op> MakeQuantize() { return std::make_unique<Quantize>(); }
std::unique_ptr<Op> MakeDequantize() { return std::make_unique<Dequantize>(); }

}  // namespace bnnedge::tflite
