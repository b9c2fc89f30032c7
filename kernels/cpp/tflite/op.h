// One operator of a partition.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"
#include "bnnedge/conv.h"
#include "flexbuffer.h"

namespace bnnedge::tflite {

// Says in one line what is wrong with a model. It is caught at the C boundary.
class ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor that an operator reads or writes. `Op::Prepare` uses its shape, `Op::Run` its data.
struct Value {
  int index = kOptionalTensor;  // number in the interpreter
  std::string name;
  int type = 0;
  std::vector<int64_t> shape;
  float scale = 0.0f;
  int32_t zero_point = 0;
  bool has_quantization = false;
  bool is_constant = false;
  bool is_private = false;  // written in the partition, and read by nothing outside of it
  void* data = nullptr;     // set for `Run`; for a constant, in `Prepare` too

  bool Is(Type wanted) const { return type == static_cast<int>(wanted); }
  int64_t Elements() const;
  int64_t Channels() const { return shape.back(); }
  int64_t Pixels() const { return Elements() / Channels(); }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
};

// The bytes of one element, 0 for a type that no operator here knows.
int64_t ElementBytes(int type);
std::string TypeName(int type);
std::string ShapeText(const std::vector<int64_t>& shape);

struct RunContext {
  void* workspace;  // 64-byte aligned
  Parallel parallel;
};

class ConvOp;
class TailBuilder;

class Op {
 public:
  virtual ~Op() = default;
  virtual const char* code() const = 0;
  // Reads the shapes of the inputs and writes that of the output. Called again for each new input size. Throws
  // ModelError.
  virtual void Prepare() = 0;
  // Builds everything that `Run` needs and sets `workspace_bytes`. It is called once all operators are prepared and
  // Fuse has chosen those that run. Throws ModelError.
  virtual void Build(const char* /*kernel*/) {}
  // Allocates nothing and does not fail.
  virtual void Run(const RunContext& context) const = 0;
  // Whether a pixel of the output (all axes but the last) needs no other pixel of those inputs that have as many pixels
  // as the output. Such an operator computes any range of pixels by `RunPixels`, so that the next operator can read
  // them while they are in the cache.
  virtual bool IsPixelwise() const { return false; }
  virtual void RunPixels(int64_t /*first*/, int64_t /*count*/) const {}

  // The values that `Run` reads, without absent inputs, and those that it writes.
  virtual std::vector<const Value*> Reads() const;
  virtual std::vector<Value*> Writes() const { return {output}; }
  // The value whose memory the first of Writes may take, because each element is read just before it is overwritten; or
  // nullptr.
  virtual const Value* InPlace() const { return nullptr; }

  // For Fuse (fuse.h).
  virtual ConvOp* AsConv() { return nullptr; }
  // Adds this operator to the tail of a convolution with results `y`. Returns whether that is possible.
  virtual bool JoinTail(const Value& /*y*/, TailBuilder* /*steps*/) const { return false; }
  // Whether the operator packs the signs of its only input.
  virtual bool PacksFloatSigns() const { return false; }
  // {top, bottom, left, right} if the operator pads packed maps by rows and columns of +1, else nullptr.
  virtual const int64_t* PadsBits() const { return nullptr; }

  // One value for each input; nullptr for an optional input that is absent.
  std::vector<Value*> inputs;
  Value* output = nullptr;
  int64_t workspace_bytes = 0;

 protected:
  [[noreturn]] void Fail(const std::string& what) const;
  void Require(bool holds, const std::string& what) const {
    if (!holds) Fail(what);
  }
  void RequireType(const Value& value, const char* role, Type wanted) const;
  // Fails if the output is out of proportion to the inputs, see ProportionateBytes.
  void RequireProportion() const;
};

// An operator whose output pixels depend only on the same pixels of its inputs.
class PixelwiseOp : public Op {
 public:
  bool IsPixelwise() const final { return true; }
  void Run(const RunContext& context) const final;
  // The bytes that one pixel reads and writes.
  int64_t PixelBytes() const;
};

// Returns nullptr if `code` is none of LCE's operators.
std::unique_ptr<Op> MakeOp(const char* code, const FlexMap& options);
bool IsLceOp(const char* code);
// Returns nullptr if the builtin operator is none of those that claim.h lists. `params` is its builtin_data.
std::unique_ptr<Op> MakeBuiltinOp(int code, const void* params);

std::unique_ptr<Op> MakeQuantize();
std::unique_ptr<Op> MakeDequantize();
std::unique_ptr<Op> MakeBConv2d(const FlexMap& options);
std::unique_ptr<Op> MakeBMaxPool2d(const FlexMap& options);
std::unique_ptr<Op> MakeArithmetic(Builtin code, int activation);
std::unique_ptr<Op> MakeClip(Builtin code);   // RELU, RELU_N1_TO_1, RELU6
std::unique_ptr<Op> MakeBound(Builtin code);  // MAXIMUM, MINIMUM
std::unique_ptr<Op> MakePRelu();
std::unique_ptr<Op> MakePad();
std::unique_ptr<Op> MakeSubsample();
std::unique_ptr<Op> MakeGather(int axis);
std::unique_ptr<Op> MakePointwise(const ConvParams& params);

// The tensors between the operators of a stem (stem_chain.h); nullptr for those that it does not have.
struct StemChain;
struct StemValues {
  Value *quantized, *convolved, *pooled;
  std::vector<const Value*> inner;
};
// Its inputs are the image, the filter and the bias.
std::unique_ptr<Op> MakeStem(StemChain chain, const StemValues& values);

// Reads an option within [least, most]. A missing one is `otherwise`, or an error if that is outside of these bounds.
int64_t Option(const FlexMap& options, const char* op, const char* key, int64_t least, int64_t most,
               int64_t otherwise = INT64_MIN);
constexpr int64_t kMaxOption = INT32_MAX;

// TensorFlow's padding of one axis and the number of windows on it. `extent` is the reach of a window, with dilation.
struct PaddedAxis {
  int64_t before, after, count;
  static PaddedAxis For(int64_t size, int64_t extent, int64_t stride, bool same);
};

// The number of elements of a slice that stays in the first-level cache. `cost` is the number of bytes that one element
// reads and writes.
inline int64_t SliceLength(int64_t cost) {
  constexpr int64_t kSliceBytes = 32 * 1024;
  return cost >= kSliceBytes ? 1 : kSliceBytes / (cost > 0 ? cost : 1);
}

// Calls body(first, count) for parts of [0, total), one part a thread if `total * cost` is worth it. All operators that
// go over the rows of a map in order get the same parts, so that a thread finds in its cache what it wrote before.
template <typename Body>
void ForParts(const Parallel& parallel, int64_t total, int64_t cost, const Body& body) {
  const int64_t worth = total / SliceLength(cost);
  const int64_t parts = worth < parallel.threads ? worth : parallel.threads;
  if (parts <= 1) {
    body(int64_t{0}, total);
    return;
  }
  struct Parts {
    const Body& body;
    int64_t total, count;
  } split{body, total, parts};
  const auto piece = [](void* context, int64_t i) {
    const Parts& s = *static_cast<const Parts*>(context);
    const int64_t first = s.total * i / s.count;
    s.body(first, s.total * (i + 1) / s.count - first);
  };
  parallel.run(parallel.host, parts, piece, &split);
}

}  // namespace bnnedge::tflite
