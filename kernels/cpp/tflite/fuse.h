// Operators that run together with a binary convolution, in one pass over its results:
//
//   PAD of bits -> LceBconv2d
//   LceBconv2d -> [ADD] -> [PRELU] -> [ADD or SUB constants of the channels] -> [clip] -> [LceQuantize]
//
// LceQuantize may also read the value before a clip that does not change signs, or the last value shifted by constants
// of the channels. The results are bit for bit those of the operators one by one, because a convolution's tail (Tail in
// bnnedge/conv.h) rounds after each step as they do. Where nothing reads the floats, the convolution computes signs
// alone by comparing integers (signs.h). Denormal numbers are the exception: the sign of a shifted value is that of
// IEEE 754.
#pragma once

#include <memory>
#include <vector>

#include "op.h"

namespace bnnedge::tflite {

// Builds the tail of a convolution, one operator of the graph after another. The steps of a tail have a fixed order; a
// method returns false and changes nothing if a later step was added before.
class TailBuilder {
 public:
  // Adds `value`, which has the shape of the results or is a constant that broadcasts to it.
  bool AddResidual(const Value& value);
  // Multiplies results below zero by constants [channels].
  bool Multiply(const Value& slope);
  // Adds `factor` times constants [channels].
  bool Shift(const Value& offset, float factor);
  bool Clip(float low, float high);
  // Takes the signs of the results, or of the results that `shift` shifts. Only steps that do not change these signs
  // can follow.
  bool TakeSigns(const TailBuilder* shift = nullptr);

  // Whether the only step is a shift.
  bool IsShift() const { return last_ == kOffset && residual_ == nullptr && tail_.slope.empty(); }
  const Tail& tail() const { return tail_; }
  const Value* residual() const { return residual_; }

 private:
  enum Step { kNothing, kResidual, kSlope, kOffset, kClip };
  bool Advance(Step step);

  Step last_ = kNothing;
  Tail tail_;
  const Value* residual_ = nullptr;
};

// The operators of the graph that run together with a convolution.
struct Fusion {
  const Value* input = nullptr;   // is read instead of inputs[0]
  const int64_t* pads = nullptr;  // {top, bottom, left, right}: pixels of +1 around the input, or nullptr
  TailBuilder steps;
  Value* output = nullptr;  // the results after these steps; nullptr if nothing reads them
  Value* bits = nullptr;    // their signs, or nullptr
};

class ConvOp : public Op {
 public:
  ConvOp* AsConv() final { return this; }
  // Which operators can run together with it. They are asked after `Prepare`.
  virtual bool CanPad(const int64_t* pads) const = 0;
  virtual bool CanFuseTail() const = 0;
  virtual bool CanWriteBits() const = 0;  // in addition to floats
  // Whether comparisons of integers give the signs of its results after the steps of `wanted`, which has no output.
  virtual bool CanCompare(const Fusion& wanted) = 0;

  Fusion fusion;
};

// Sets the fusions of prepared operators and returns the operators that are left to run, in order.
std::vector<Op*> Fuse(const std::vector<std::unique_ptr<Op>>& ops);

}  // namespace bnnedge::tflite
