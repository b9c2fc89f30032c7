// An int8 stem, from the float image in NCHW to floats and packed signs in NHWC:
//
//   [SpaceToDepth]QuantizedConv2d[MaxPool][Sign]
//       (X, x_scale, x_zero_point, W, w_scale, y_scale, y_zero_point, bias, lowest [, limit]) -> Y [, Q]
#include <algorithm>
#include <utility>

#include "../workspace.h"
#include "bnnedge/stem.h"
#include "runtime.h"

namespace bnnedge::ort {
namespace {

enum Part : int { kFolds = 1, kPools = 2, kSigns = 4, kAllParts = 7 };  // Operator::variant is a sum of them

constexpr int32_t kByteOfCode = 128;  // the byte of code q is q + 128

// ---- Attributes ----

std::vector<AttributeField> Fields(int parts, KernelWindow* conv, KernelWindow* pool) {
  std::vector<AttributeField> fields{{"strides", conv->strides, 2}, {"pads", conv->pads, 4}};
  if ((parts & kPools) != 0) {
    fields.insert(fields.end(),
                  {{"pool_shape", pool->kernel, 2}, {"pool_strides", pool->strides, 2}, {"pool_pads", pool->pads, 4}});
  }
  return fields;
}

constexpr KernelWindow kDefaultWindow{{0, 0}, {1, 1}, {0, 0, 0, 0}};

// ---- The operator ----

class QuantizedConvOp : public Kernel {
 public:
  enum Input : size_t { kX, kXScale, kXZeroPoint, kW, kWScale, kYScale, kYZeroPoint, kBias, kLowest, kLimit };

  QuantizedConvOp(const Operator& op, const KernelInfo* info) : Kernel(Site(op.api, op.name.c_str(), info)), op_(op) {
    ReadArrays(site(), info, Fields(op.variant, &conv_, &pool_));
    std::vector<const Value*> inputs(op.inputs.size(), nullptr);
    if (ConstantInputs(info, kXScale, inputs.size(), &inputs)) stem_ = MakeStem(inputs);
  }

  void Compute(KernelContext* context) override {
    if (stem_ != nullptr) {
      Run(*stem_, context);
      return;
    }
    // The graph computes some of the parameters, so that the stem is made in every run.
    std::vector<const Value*> inputs(op_.inputs.size(), nullptr);
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = Kernel::Input(context, i);
    const std::unique_ptr<Stem> stem = MakeStem(inputs);
    Run(*stem, context);
  }

 private:
  bool Has(Part part) const { return (op_.variant & part) != 0; }

  std::unique_ptr<Stem> MakeStem(const std::vector<const Value*>& inputs) const {
    const Tensor w = ReadTensor(site(), "W", kInt8, 4, inputs[kW]);
    StemParams p{};
    p.fold = Has(kFolds) ? 2 : 1;
    p.layout = Layout::kNchw;
    p.arithmetic = Arithmetic::kFloat;
    p.out_channels = w.shape[0];
    p.channels = w.shape[1] / (p.fold * p.fold);
    if (w.shape[0] < 1 || p.channels < 1 || w.shape[1] % (p.fold * p.fold) != 0) {
      site().Reject("W must have filters, and channels for each part of a folded image, found " +
                    std::to_string(w.shape[0]) + " and " + std::to_string(w.shape[1]));
    }
    p.conv = conv_;
    p.conv.kernel[0] = w.shape[2];
    p.conv.kernel[1] = w.shape[3];
    p.pools = Has(kPools);
    p.pool = pool_;
    p.source = ReadCodes("x_scale", inputs[kXScale], "x_zero_point", inputs[kXZeroPoint]);
    p.target = ReadCodes("y_scale", inputs[kYScale], "y_zero_point", inputs[kYZeroPoint]);
    p.low_code = INT8_MIN;
    p.high_code = INT8_MAX;
    const auto scale = ReadParameter<float>(site(), "w_scale", kFloat, p.out_channels, inputs[kWScale]);
    const auto bias = ReadParameter<int32_t>(site(), "bias", kInt32, p.out_channels, inputs[kBias]);
    Tail tail;
    tail.offset = ReadParameter<float>(site(), "lowest", kFloat, p.out_channels, inputs[kLowest]);
    tail.writes_bits = Has(kSigns);
    if (tail.writes_bits) tail.limit = ReadValues(site(), "limit", p.out_channels, inputs[kLimit]);
    const std::vector<int8_t> filter = InChannelsLast(w);
    std::string error;
    std::unique_ptr<Stem> stem = Stem::Create(p, {filter.data(), scale.data(), bias.data()}, tail, nullptr, &error);
    if (stem == nullptr) site().Reject(error);
    return stem;
  }

  Quantization ReadCodes(const char* scale, const Value* scale_value, const char* zero_point,
                         const Value* zero_value) const {
    const Tensor s = ReadTensor(site(), scale, kFloat, 0, 0, scale_value);
    const Tensor z = ReadTensor(site(), zero_point, kUint8, 0, 0, zero_value);
    return {*static_cast<const float*>(s.data), *static_cast<const uint8_t*>(z.data) - kByteOfCode};
  }

  // Turns OIHW into OHWI.
  static std::vector<int8_t> InChannelsLast(const Tensor& w) {
    const int64_t channels = w.shape[1], taps = w.shape[2] * w.shape[3];
    const int8_t* const from = static_cast<const int8_t*>(w.data);
    std::vector<int8_t> to(static_cast<size_t>(w.shape[0] * channels * taps));
    for (int64_t plane = 0; plane < w.shape[0] * channels; ++plane) {
      const int64_t o = plane / channels, c = plane % channels;
      for (int64_t t = 0; t < taps; ++t) {
        to[static_cast<size_t>((o * taps + t) * channels + c)] = from[plane * taps + t];
      }
    }
    return to;
  }

  void Run(const Stem& stem, KernelContext* context) {
    const Tensor x = ReadTensor(site(), "X", kFloat, 4, Kernel::Input(context, kX));
    const StemParams& p = stem.params();
    if (x.shape[1] != p.channels) {
      site().Reject("X must have " + std::to_string(p.channels) + " channels, found " + std::to_string(x.shape[1]));
    }
    // An empty batch has outputs too.
    StemSize size{};
    size.batch = std::max<int64_t>(x.shape[0], 1);
    size.in_height = x.shape[2];
    size.in_width = x.shape[3];
    const std::string error = stem.Fit(&size);
    if (!error.empty()) site().Reject(error);
    const int64_t values[4] = {x.shape[0], size.out_height, size.out_width, p.out_channels};
    const int64_t bytes[4] = {x.shape[0], size.out_height, size.out_width, WordsFor(p.out_channels) * 4};
    StemTensors tensors{};
    tensors.image = static_cast<const float*>(x.data);
    tensors.output = static_cast<float*>(Output(context, 0, values));
    if (Has(kSigns)) tensors.bits = static_cast<uint32_t*>(Output(context, 1, bytes));
    if (x.shape[0] == 0) return;
    WorkspacePool::Lease workspace(&workspaces_);
    RuntimeThreads pool(site().api, context);
    stem.Run(size, tensors, workspace.AtLeast(size.workspace_bytes), pool.AsParallel());
  }

  const Operator& op_;
  KernelWindow conv_ = kDefaultWindow, pool_ = kDefaultWindow;
  std::unique_ptr<Stem> stem_;  // nullptr if a parameter is not constant
  WorkspacePool workspaces_;
};

void InferShape(const Operator& op, const ShapeContext* context) {
  const std::vector<Dimension> x = ReadShape(op.api, context, QuantizedConvOp::kX);
  const std::vector<Dimension> w = ReadShape(op.api, context, QuantizedConvOp::kW);
  KernelWindow conv = kDefaultWindow, pool = kDefaultWindow;
  if (x.empty() || w.empty() || !ReadArrays(op.api, context, Fields(op.variant, &conv, &pool))) return;
  const bool pools = (op.variant & kPools) != 0;
  Dimension shape[4] = {x[0], {}, {}, w[0]};
  for (int axis = 0; axis < 2; ++axis) {
    const Dimension &size = x[static_cast<size_t>(2 + axis)], &kernel = w[static_cast<size_t>(2 + axis)];
    // Unknown sizes are not followed, as a stem reads the image, whose size is in the file.
    if (size.value < 1 || kernel.value < 1) continue;
    conv.kernel[axis] = kernel.value;
    const auto is_sane = [axis](const KernelWindow& window) {
      return window.kernel[axis] >= 1 && window.strides[axis] >= 1 && window.pads[axis] >= 0 &&
             window.pads[axis] < window.kernel[axis] && window.pads[axis + 2] >= 0 &&
             window.pads[axis + 2] < window.kernel[axis];
    };
    if (!is_sane(conv) || (pools && !is_sane(pool))) return;
    int64_t count = conv.Count(axis, (op.variant & kFolds) != 0 ? size.value / 2 : size.value);
    if (pools) count = pool.Count(axis, count);
    shape[1 + axis].value = count;
  }
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    if (op.outputs[i] == kUint8) shape[3] = BytesDimension(w[0]);
    WriteShape(op.api, context, i, op.outputs[i], shape);
  }
}

Operator Make(int parts) {
  Operator op{};
  op.name = std::string((parts & kFolds) != 0 ? "SpaceToDepth" : "") + "QuantizedConv2d" +
            ((parts & kPools) != 0 ? "MaxPool" : "") + ((parts & kSigns) != 0 ? "Sign" : "");
  op.variant = parts;
  op.inputs = {kFloat, kFloat, kUint8, kInt8, kFloat, kFloat, kUint8, kInt32, kFloat};
  op.outputs = {kFloat};
  if ((parts & kSigns) != 0) {
    op.inputs.push_back(kFloat);
    op.outputs.push_back(kUint8);
  }
  op.create = [](const Operator& self, const KernelInfo* info) -> std::unique_ptr<Kernel> {
    return std::make_unique<QuantizedConvOp>(self, info);
  };
  op.infer_shape = InferShape;
  return op;
}

}  // namespace

std::vector<Operator> StemOperators() {
  std::vector<Operator> operators;
  for (int parts = 0; parts <= kAllParts; ++parts) operators.push_back(Make(parts));
  return operators;
}

}  // namespace bnnedge::ort
