#include <algorithm>

#include "op.h"

namespace bnnedge::tflite {
namespace {

constexpr char kCode[] = "LceBMaxPool2d";

class BMaxPool : public Op {
 public:
  explicit BMaxPool(const FlexMap& options) {
    p_.kernel_height = Option(options, kCode, "filter_height", 1, kMaxOption);
    p_.kernel_width = Option(options, kCode, "filter_width", 1, kMaxOption);
    p_.stride_height = Option(options, kCode, "stride_height", 1, kMaxOption);
    p_.stride_width = Option(options, kCode, "stride_width", 1, kMaxOption);
    same_ = Option(options, kCode, "padding", 0, 1, 0) == 0;
  }

  const char* code() const override { return kCode; }

  void Prepare() override {
    Require(inputs.size() == 1 && inputs[0] != nullptr, "needs 1 input, found " + std::to_string(inputs.size()));
    const std::vector<int64_t>& shape = inputs[0]->shape;
    RequireType(*inputs[0], "input", Type::kInt32);
    RequireType(*output, "output", Type::kInt32);
    Require(shape.size() == 4, "input must be [N, H, W, words], found " + ShapeText(shape));
    const PaddedAxis rows = PaddedAxis::For(shape[1], p_.kernel_height, p_.stride_height, same_);
    const PaddedAxis columns = PaddedAxis::For(shape[2], p_.kernel_width, p_.stride_width, same_);
    Require(rows.count >= 1 && columns.count >= 1, "the window does not fit into input " + ShapeText(shape));
    p_.batch = shape[0];
    p_.in_height = shape[1];
    p_.in_width = shape[2];
    p_.words = shape[3];
    p_.pad_top = rows.before;
    p_.pad_left = columns.before;
    p_.out_height = rows.count;
    p_.out_width = columns.count;
    output->shape = {shape[0], rows.count, columns.count, shape[3]};
  }

  void Run(const RunContext& context) const override {
    const int64_t row_bytes = p_.out_width * p_.words * p_.kernel_height * p_.kernel_width * ElementBytes(output->type);
    ForParts(context.parallel, p_.batch * p_.out_height, row_bytes,
             [this](int64_t first, int64_t count) { RunRows(first, first + count); });
  }

 private:
  // Computes output rows [first, last) of all images.
  void RunRows(int64_t first, int64_t last) const {
    BMaxPoolParams part = p_;
    part.batch = 1;
    for (int64_t row = first; row < last; row += part.out_height) {
      const int64_t image = row / p_.out_height, y = row % p_.out_height;
      part.pad_top = p_.pad_top - y * p_.stride_height;
      part.out_height = std::min(p_.out_height - y, last - row);
      BMaxPool2d(part, inputs[0]->As<const uint32_t>() + image * p_.in_height * p_.in_width * p_.words,
                 output->As<uint32_t>() + row * p_.out_width * p_.words);
    }
  }

  BMaxPoolParams p_{};
  bool same_;
};

}  // namespace

std::unique_ptr<Op> MakeBMaxPool2d(const FlexMap& options) { return std::make_unique<BMaxPool>(options); }

}  // namespace bnnedge::tflite
