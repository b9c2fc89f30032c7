// Operators that move elements of 4 bytes, floats or packed bits, and compute nothing: PAD with zeros, STRIDED_SLICE of
// whole axes, GATHER.
#include <algorithm>
#include <cstring>

#include "op.h"

namespace bnnedge::tflite {
namespace {

constexpr size_t kLongestRank = 8;  // bounds the recursion

// Copies a box element by element. `from_steps` and `to_steps` are the distances of neighbours along each axis.
struct BoxCopy {
  std::vector<int64_t> counts, from_steps, to_steps;

  // Cuts the box into parts along the first two axes, for threads.
  void Run(const Parallel& parallel, const uint32_t* from, uint32_t* to) const {
    if (counts.size() < 3) {
      Copy(from, to, 0);
      return;
    }
    int64_t row_bytes = 2 * static_cast<int64_t>(sizeof(uint32_t));
    for (size_t axis = 2; axis < counts.size(); ++axis) row_bytes *= counts[axis];
    ForParts(parallel, counts[0] * counts[1], row_bytes, [&](int64_t first, int64_t count) {
      for (int64_t row = first; row < first + count; ++row) {
        const int64_t i = row / counts[1], j = row % counts[1];
        Copy(from + i * from_steps[0] + j * from_steps[1], to + i * to_steps[0] + j * to_steps[1], 2);
      }
    });
  }

 private:
  void Copy(const uint32_t* from, uint32_t* to, size_t axis) const {
    if (axis + 1 == counts.size() && from_steps[axis] == 1 && to_steps[axis] == 1) {
      std::memcpy(to, from, static_cast<size_t>(counts[axis]) * sizeof(uint32_t));
      return;
    }
    for (int64_t i = 0; i < counts[axis]; ++i, from += from_steps[axis], to += to_steps[axis]) {
      if (axis + 1 == counts.size()) {
        *to = *from;
      } else {
        Copy(from, to, axis + 1);
      }
    }
  }
};

std::vector<int64_t> DenseSteps(const std::vector<int64_t>& shape) {
  std::vector<int64_t> steps(shape.size(), 1);
  for (size_t axis = shape.size() - 1; axis-- > 0;) steps[axis] = steps[axis + 1] * shape[axis + 1];
  return steps;
}

class Rearrange : public Op {
 protected:
  void CheckInputs(size_t count) const {
    Require(inputs.size() == count && std::count(inputs.begin(), inputs.end(), nullptr) == 0,
            "needs " + std::to_string(count) + " inputs, found " + std::to_string(inputs.size()));
    const Value& input = *inputs[0];
    Require(input.Is(Type::kFloat32) || input.Is(Type::kInt32),
            "input must be float32 or int32, found " + TypeName(input.type));
    RequireType(*output, "output", static_cast<Type>(input.type));
    Require(!input.shape.empty() && input.shape.size() <= kLongestRank,
            "input must have 1 to 8 axes, found " + ShapeText(input.shape));
    input.Elements();
  }

  // The `count` integers of constant input `which`.
  const int32_t* Integers(size_t which, const char* role, int64_t count) const {
    const Value& value = *inputs[which];
    RequireType(value, role, Type::kInt32);
    Require(value.is_constant, std::string("the ") + role + " must be constant");
    Require(!value.shape.empty() && value.Elements() == count,
            std::string(role) + " must be " + std::to_string(count) + " numbers, found " + ShapeText(value.shape));
    return value.As<const int32_t>();
  }
};

class Pad : public Rearrange {
 public:
  const char* code() const override { return "PAD"; }

  void Prepare() override {
    CheckInputs(2);
    const std::vector<int64_t>& shape = inputs[0]->shape;
    const int32_t* const edges = Integers(1, "paddings", static_cast<int64_t>(2 * shape.size()));
    output->shape = shape;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      Require(edges[2 * axis] >= 0 && edges[2 * axis + 1] >= 0, "paddings must not be below 0");
      output->shape[axis] += int64_t{edges[2 * axis]} + edges[2 * axis + 1];
      Require(output->shape[axis] <= INT32_MAX, "an axis is longer than 2^31 - 1");
    }
    RequireProportion();
    copy_ = {shape, DenseSteps(shape), DenseSteps(output->shape)};
    start_ = 0;
    for (size_t axis = 0; axis < shape.size(); ++axis) start_ += edges[2 * axis] * copy_.to_steps[axis];
    pads_bits_ = inputs[0]->Is(Type::kInt32) && shape.size() == 4;
    for (size_t i = 0; pads_bits_ && i < 4; ++i) {
      pads_[i] = edges[i + 2];
      pads_bits_ = edges[i < 2 ? i : i + 4] == 0;
    }
  }

  const int64_t* PadsBits() const override { return pads_bits_ ? pads_ : nullptr; }

  void Run(const RunContext& context) const override {
    ForParts(context.parallel, output->Elements(), sizeof(uint32_t),
             [this](int64_t first, int64_t count) { std::fill_n(output->As<uint32_t>() + first, count, 0u); });
    copy_.Run(context.parallel, inputs[0]->As<const uint32_t>(), output->As<uint32_t>() + start_);
  }

 private:
  BoxCopy copy_;
  int64_t start_ = 0;
  bool pads_bits_ = false;
  int64_t pads_[4] = {};
};

// STRIDED_SLICE with every bit of begin_mask and end_mask set, which is what ClaimedNodes lets through.
class Subsample : public Rearrange {
 public:
  const char* code() const override { return "STRIDED_SLICE"; }

  void Prepare() override {
    CheckInputs(4);
    const std::vector<int64_t>& shape = inputs[0]->shape;
    const int32_t* const steps = Integers(3, "strides", static_cast<int64_t>(shape.size()));
    output->shape = shape;
    copy_.from_steps = DenseSteps(shape);
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      Require(steps[axis] >= 1, "strides must be above 0");
      output->shape[axis] = (shape[axis] - 1) / steps[axis] + 1;
      // No step leads from a single element, and the file's may be large.
      copy_.from_steps[axis] *= output->shape[axis] == 1 ? 1 : steps[axis];
    }
    copy_.counts = output->shape;
    copy_.to_steps = DenseSteps(output->shape);
  }

  void Run(const RunContext& context) const override {
    copy_.Run(context.parallel, inputs[0]->As<const uint32_t>(), output->As<uint32_t>());
  }

 private:
  BoxCopy copy_;
};

// GATHER: slices along one axis in the order of a list. The result of a constant input is kept, and `Run` has nothing
// to do unless the interpreter reads the result too.
class Gather : public Rearrange {
 public:
  explicit Gather(int axis) : axis_(axis) {}

  const char* code() const override { return "GATHER"; }

  void Prepare() override {
    CheckInputs(2);
    const Value &input = *inputs[0], &list = *inputs[1];
    const auto rank = static_cast<int64_t>(input.shape.size());
    const int64_t axis = axis_ < 0 ? axis_ + rank : axis_;
    Require(axis >= 0 && axis < rank, "axis " + std::to_string(axis_) + " is none of " + ShapeText(input.shape));
    Require(list.shape.size() == 1, "indices must have one axis, found " + ShapeText(list.shape));
    indices_ = Integers(1, "indices", list.Elements());
    const auto at = static_cast<size_t>(axis);
    size_ = input.shape[at];
    count_ = list.Elements();
    Require(std::all_of(indices_, indices_ + count_, [&](int32_t i) { return i >= 0 && i < size_; }),
            "indices must be in [0, " + std::to_string(size_) + ")");
    output->shape = input.shape;
    output->shape[at] = count_;
    RequireProportion();
    slice_ = DenseSteps(input.shape)[at];
    outer_ = input.Elements() / (slice_ * size_);
    output->is_constant = input.is_constant;
    table_.clear();
    if (!input.is_constant) return;
    table_.resize(static_cast<size_t>(output->Elements()));
    output->data = table_.data();
    Copy(0, outer_ * count_);
  }

  void Run(const RunContext& context) const override {
    if (table_.empty()) {
      ForParts(context.parallel, outer_ * count_, 2 * slice_ * static_cast<int64_t>(sizeof(uint32_t)),
               [this](int64_t first, int64_t count) { Copy(first, first + count); });
    } else if (output->data != table_.data()) {
      std::memcpy(output->data, table_.data(), table_.size() * sizeof(uint32_t));
    }
  }

 private:
  // Copies slices [first, last) of the output.
  void Copy(int64_t first, int64_t last) const {
    const auto* const from = inputs[0]->As<const uint32_t>();
    auto* const to = output->As<uint32_t>();
    for (int64_t i = first; i < last; ++i) {
      const int64_t slice = i / count_ * size_ + indices_[i % count_];
      std::memcpy(to + i * slice_, from + slice * slice_, static_cast<size_t>(slice_) * sizeof(uint32_t));
    }
  }

  const int64_t axis_;
  const int32_t* indices_ = nullptr;
  int64_t outer_ = 0, size_ = 0, count_ = 0, slice_ = 0;
  std::vector<uint32_t> table_;
};

}  // namespace

std::unique_ptr<Op> MakePad() { return std::make_unique<Pad>(); }
std::unique_ptr<Op> MakeSubsample() { return std::make_unique<Subsample>(); }
std::unique_ptr<Op> MakeGather(int axis) { return std::make_unique<Gather>(axis); }

}  // namespace bnnedge::tflite
