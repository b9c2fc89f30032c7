// Binary convolutions between float images in NCHW, where the channels of a group do not fill whole words:
//
//   BinaryConv2d(X, W, multiplier, bias) -> Y      Y = float(s) * multiplier + bias, product and sum rounded apart
//   BinaryConv2dThreshold(X, W, threshold) -> Y    Y = s < threshold ? -1 : +1
#include <utility>

#include "runtime.h"

namespace bnnedge::ort {
namespace {

constexpr int kScales = 0, kCompares = 1;  // values of Operator::variant

class FloatConvOp : public LayerKernel {
 public:
  FloatConvOp(const Operator& op, const KernelInfo* info) : LayerKernel(op, info) {
    MakeLayerOnce(info, op.inputs.size());
  }

 private:
  std::unique_ptr<Layer> MakeLayer(const std::vector<const Value*>& inputs) const override {
    const Tensor w = ReadTensor(site(), "W", kUint8, 4, inputs[kW]);
    const Weights weights{{w.shape[0], w.shape[1], w.shape[2], w.shape[3]}, static_cast<const uint8_t*>(w.data)};
    OutputTransform transform;
    if (op().variant == kCompares) {
      transform.kind = OutputKind::kBits;
      transform.threshold = ReadParameter<int32_t>(site(), "threshold", kInt32, w.shape[0], inputs[kParameters]);
    } else {
      transform.kind = OutputKind::kFloat;
      transform.layout = Layout::kNchw;
      transform.multiplier = ReadParameter<float>(site(), "multiplier", kFloat, w.shape[0], inputs[kParameters]);
      transform.bias = ReadParameter<float>(site(), "bias", kFloat, w.shape[0], inputs[kParameters + 1]);
    }
    std::string error;
    std::unique_ptr<Layer> layer =
        Layer::Create(attributes(), weights, std::move(transform), Layer::kFloatNchw, &error);
    if (layer == nullptr) site().Reject(error);
    return layer;
  }

  void Run(Layer* layer, KernelContext* context) const override {
    const Tensor x = ReadTensor(site(), "X", kFloat, 4, Input(context, 0));
    int64_t shape[4];
    std::string error = layer->OutputShape(x.shape, shape);
    if (!error.empty()) site().Reject(error);
    float* y = static_cast<float*>(Output(context, 0, shape));
    RuntimeThreads pool(site().api, context);
    error = layer->Run(static_cast<const float*>(x.data), x.shape, y, pool.AsParallel());
    if (!error.empty()) site().Reject(error);
  }
};

void InferShape(const Operator& op, const ShapeContext* context) {
  const std::vector<Dimension> x = ReadShape(op.api, context, 0), w = ReadShape(op.api, context, 1);
  ConvAttributes attributes;
  if (x.empty() || w.empty() || !ReadConvAttributes(op.api, context, &attributes)) return;
  const Dimension y[4] = {x[0], w[0], OutDimension(attributes, 0, x[2], w[1]), OutDimension(attributes, 1, x[3], w[2])};
  WriteShape(op.api, context, 0, kFloat, y);
}

Operator Make(const char* name, int variant, std::vector<ElementType> inputs) {
  Operator op{};
  op.name = name;
  op.variant = variant;
  op.inputs = std::move(inputs);
  op.outputs = {kFloat};
  op.create = [](const Operator& self, const KernelInfo* info) -> std::unique_ptr<Kernel> {
    return std::make_unique<FloatConvOp>(self, info);
  };
  op.infer_shape = InferShape;
  return op;
}

}  // namespace

std::vector<Operator> FloatOperators() {
  return {Make("BinaryConv2d", kScales, {kFloat, kUint8, kFloat, kFloat}),
          Make("BinaryConv2dThreshold", kCompares, {kFloat, kUint8, kInt32})};
}

}  // namespace bnnedge::ort
