#include "op.h"

#include <algorithm>
#include <cstring>

#include "../workspace.h"
#include "bnnedge/output_size.h"

namespace bnnedge::tflite {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;

int64_t Bytes(const Value& value) { return value.Elements() * ElementBytes(value.type); }

}  // namespace

int64_t Value::Elements() const {
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size < 1 || product > kMaxElements / size) {
      throw ModelError("tensor '" + name + "': shape " + ShapeText(shape) + " is empty or too large");
    }
    product *= size;
  }
  return product;
}

int64_t ElementBytes(int type) {
  switch (static_cast<Type>(type)) {
    case Type::kFloat32:
    case Type::kInt32:
      return 4;
    case Type::kBool:
    case Type::kInt8:
      return 1;
  }
  return 0;
}

std::string TypeName(int type) {
  switch (static_cast<Type>(type)) {
    case Type::kFloat32:
      return "float32";
    case Type::kInt32:
      return "int32";
    case Type::kBool:
      return "bool";
    case Type::kInt8:
      return "int8";
  }
  return "type " + std::to_string(type);
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

void Op::Fail(const std::string& what) const {
  throw ModelError(std::string(code()) + " '" + output->name + "': " + what);
}

std::vector<const Value*> Op::Reads() const {
  std::vector<const Value*> reads;
  for (const Value* input : inputs) {
    if (input != nullptr) reads.push_back(input);
  }
  return reads;
}

void Op::RequireType(const Value& value, const char* role, Type wanted) const {
  Require(value.Is(wanted),
          std::string(role) + " must be " + TypeName(static_cast<int>(wanted)) + ", found " + TypeName(value.type));
}

void Op::RequireProportion() const {
  int64_t input_bytes = 0;
  for (const Value* input : inputs) input_bytes += input == nullptr ? 0 : Bytes(*input);
  Require(Bytes(*output) <= ProportionateBytes(input_bytes),
          "output " + ShapeText(output->shape) + " is out of proportion to the inputs");
}

int64_t PixelwiseOp::PixelBytes() const {
  const int64_t pixels = output->Pixels();
  int64_t bytes = Bytes(*output);
  for (const Value* input : inputs) bytes += Bytes(*input);
  return (bytes + pixels - 1) / pixels;
}

void PixelwiseOp::Run(const RunContext& context) const {
  ForParts(context.parallel, output->Pixels(), PixelBytes(),
           [this](int64_t first, int64_t count) { RunPixels(first, count); });
}

bool IsLceOp(const char* code) {
  if (code == nullptr) return false;
  for (const char* known : {"LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d"}) {
    if (std::strcmp(code, known) == 0) return true;
  }
  return false;
}

std::unique_ptr<Op> MakeOp(const char* code, const FlexMap& options) {
  const std::string name = code == nullptr ? "" : code;
  if (name == "LceQuantize") return MakeQuantize();
  if (name == "LceDequantize") return MakeDequantize();
  if (name == "LceBconv2d") return MakeBConv2d(options);
  if (name == "LceBMaxPool2d") return MakeBMaxPool2d(options);
  return nullptr;
}

std::unique_ptr<Op> MakeBuiltinOp(int code, const void* params) {
  switch (static_cast<Builtin>(code)) {
    case Builtin::kAdd:
    case Builtin::kSub:
    case Builtin::kMul:
      return MakeArithmetic(static_cast<Builtin>(code), static_cast<const ArithmeticParams*>(params)->activation);
    case Builtin::kConv2d:
      return MakePointwise(*static_cast<const ConvParams*>(params));
    case Builtin::kRelu:
    case Builtin::kReluN1To1:
    case Builtin::kRelu6:
      return MakeClip(static_cast<Builtin>(code));
    case Builtin::kMaximum:
    case Builtin::kMinimum:
      return MakeBound(static_cast<Builtin>(code));
    case Builtin::kPrelu:
      return MakePRelu();
    case Builtin::kPad:
      return MakePad();
    case Builtin::kGather:
      return MakeGather(static_cast<const GatherParams*>(params)->axis);
    case Builtin::kStridedSlice:
      return MakeSubsample();
  }
  return nullptr;
}

int64_t Option(const FlexMap& options, const char* op, const char* key, int64_t least, int64_t most,
               int64_t otherwise) {
  int64_t value = otherwise;
  const FlexMap::Found found = options.Find(key, &value);
  if (found == FlexMap::Found::kInteger && value >= least && value <= most) return value;
  if (found == FlexMap::Found::kMissing && otherwise >= least && otherwise <= most) return otherwise;
  const std::string got = found == FlexMap::Found::kInteger   ? std::to_string(value)
                          : found == FlexMap::Found::kMissing ? "none"
                                                              : "something that is no integer";
  throw ModelError(std::string(op) + ": option " + key + " must be an integer in [" + std::to_string(least) + ", " +
                   std::to_string(most) + "], found " + got + "; export the model again");
}

PaddedAxis PaddedAxis::For(int64_t size, int64_t extent, int64_t stride, bool same) {
  if (!same) return {0, 0, OutputSize(size, extent, stride, 1, 0)};
  const int64_t count = (size - 1) / stride + 1;
  const int64_t total = std::max<int64_t>((count - 1) * stride + extent - size, 0);
  return {total / 2, total - total / 2, count};
}

}  // namespace bnnedge::tflite
