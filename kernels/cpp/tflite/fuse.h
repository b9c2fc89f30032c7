// Operators that run together with a binary convolution, in one pass over its results:
//
//   PAD of bits -> LceBconv2d
//   LceBconv2d -> [ADD] -> [PRELU] -> [ADD or SUB constants of the channels] -> [clip] -> [LceQuantize]
//
// LceQuantize may as well read the value before a clip that leaves the signs, or the last value shifted by constants of
// the channels. Results are those of the operators one by one, bit for bit: a convolution's tail (Tail in
// bnnedge/conv.h) rounds after each step as they do. Where nobody needs the floats, only signs are computed, by
// comparing integers (signs.h). Denormal numbers are the exception: a shifted sign is what IEEE 754 has it to be.
#pragma once

#include <memory>
#include <vector>

#include "op.h"

namespace bnnedge::tflite {

// What results go through, gathered operator by operator. Each method returns false, and changes nothing, if it is too
// late for its step.
class TailBuilder {
 public:
  // The same shape, or a constant that broadcasts to it.
  bool AddResidual(const Value& value);
  bool Multiply(const Value& slope);             // constants [channels], where below zero
  bool Shift(const Value& offset, float factor);  // by factor times constants [channels]
  bool Clip(float low, float high);
  // The signs are taken: after that only what leaves them.
  bool TakeSigns(const TailBuilder* shift = nullptr);

  // Shifts, and does nothing else.
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

// What a convolution does besides its own work.
struct Fusion {
  const Value* input = nullptr;   // instead of inputs[0]
  const int64_t* pads = nullptr;  // {top, bottom, left, right}: pixels of +1 around the input, or nullptr
  TailBuilder steps;
  Value* output = nullptr;        // the results behind these steps; nullptr: nobody needs them
  Value* bits = nullptr;          // their signs, or nullptr
};

class ConvOp : public Op {
 public:
  ConvOp* AsConv() final { return this; }
  // What it can do, after `Prepare`.
  virtual bool CanPad(const int64_t* pads) const = 0;
  virtual bool CanFuseTail() const = 0;
  virtual bool CanWriteBits() const = 0;  // besides floats
  // Whether integers decide the signs of what becomes of its results. `fusion` has no output.
  virtual bool CanCompare(const Fusion& wanted) = 0;

  Fusion fusion;
};

// Sets the fusions and returns the operators that are left to run, in order. Called when all are prepared.
std::vector<Op*> Fuse(const std::vector<std::unique_ptr<Op>>& ops);

}  // namespace bnnedge::tflite
