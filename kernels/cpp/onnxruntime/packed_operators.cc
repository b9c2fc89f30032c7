// The operators on packed signs in NHWC:
//
//   PackSigns(X, limit) -> P
//   PackedConv2d[Add][PRelu][Clip][Sign](P, W, multiplier, bias [, residual] [, slope, offset] [, limit]) -> Y [, Q]
//   PackedConv2dThreshold(P, W, threshold) -> Q
//   PackedMaxPool2d(P) -> Q
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "runtime.h"

namespace bnnedge::ort {
namespace {

constexpr int64_t kWordBytes = sizeof(uint32_t);

// The steps that follow a convolution, in the order of the operator's name; a variant is a sum of them.
enum PostStep : int { kAdd = 1, kPRelu = 2, kClip = 4, kSign = 8, kAllSteps = 15, kThreshold = 16 };

// Reads packed signs, whose last dimension holds bytes, as words. Bytes that are not aligned for words are copied to
// `copy` first.
const uint32_t* Words(const Site& site, const Tensor& p, std::vector<uint32_t>* copy) {
  if (p.shape[3] % kWordBytes != 0) {
    site.Reject("P must hold whole words, found " + std::to_string(p.shape[3]) + " bytes in its last dimension");
  }
  if (reinterpret_cast<uintptr_t>(p.data) % kWordBytes == 0) return static_cast<const uint32_t*>(p.data);
  copy->resize(static_cast<size_t>(p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3] / kWordBytes));
  std::memcpy(copy->data(), p.data, copy->size() * kWordBytes);
  return copy->data();
}

// ---- Convolutions ----

class PackedConvOp : public LayerKernel {
 public:
  static constexpr int kResidual = 4;

  PackedConvOp(const Operator& op, const KernelInfo* info)
      : LayerKernel(op, info),
        low_(Has(kClip) ? ReadFloat(site(), info, "low") : Tail().low),
        high_(Has(kClip) ? ReadFloat(site(), info, "high") : Tail().high) {
    if (!(low_ <= high_)) site().Reject("attribute low must not be above high");
    MakeLayerOnce(info, Has(kAdd) ? kResidual : op.inputs.size());
  }

 private:
  static constexpr size_t kP = 0;

  bool Has(PostStep step) const { return (op().variant & step) != 0; }

  std::unique_ptr<Layer> MakeLayer(const std::vector<const Value*>& inputs) const override {
    const Tensor w = ReadTensor(site(), "W", kUint8, 4, inputs[kW]);
    const int64_t filters = w.shape[0];
    const Weights weights{{filters, w.shape[1], w.shape[2], w.shape[3]}, static_cast<const uint8_t*>(w.data)};
    OutputTransform transform;
    if (Has(kThreshold)) {
      transform.kind = OutputKind::kBits;
      transform.threshold = ReadParameter<int32_t>(site(), "threshold", kInt32, filters, inputs[kParameters]);
    } else {
      transform.kind = OutputKind::kFloat;
      transform.multiplier = ReadParameter<float>(site(), "multiplier", kFloat, filters, inputs[kParameters]);
      transform.bias = ReadParameter<float>(site(), "bias", kFloat, filters, inputs[kParameters + 1]);
      transform.tail = MakeTail(filters, inputs);
    }
    std::string error;
    std::unique_ptr<Layer> layer =
        Layer::Create(attributes(), weights, std::move(transform), Layer::kPackedNhwc, &error);
    if (layer == nullptr) site().Reject(error);
    return layer;
  }

  Tail MakeTail(int64_t filters, const std::vector<const Value*>& inputs) const {
    Tail tail;
    size_t next = kResidual;
    tail.low = low_;
    tail.high = high_;
    if (Has(kAdd)) {
      tail.adds_residual = true;
      ++next;
    }
    if (Has(kPRelu)) {
      tail.slope = ReadValues(site(), "slope", filters, inputs[next++]);
      tail.offset = ReadValues(site(), "offset", filters, inputs[next++]);
      // An offset of -0.0 changes nothing.
      const auto is_nothing = [](float value) { return value == 0.0f && std::signbit(value); };
      if (std::all_of(tail.offset.begin(), tail.offset.end(), is_nothing)) tail.offset.clear();
    }
    if (Has(kSign)) {
      tail.writes_bits = true;
      tail.limit = ReadValues(site(), "limit", filters, inputs[next]);
    }
    return tail;
  }

  void Run(Layer* layer, KernelContext* context) const override {
    const Tensor p = ReadTensor(site(), "P", kUint8, 4, Input(context, kP));
    const int64_t channels = attributes().group * attributes().channels, bytes = WordsFor(channels) * kWordBytes;
    if (p.shape[3] != bytes) {
      site().Reject("P must hold " + std::to_string(bytes) + " bytes a pixel for " + std::to_string(channels) +
                    " channels, found " + std::to_string(p.shape[3]));
    }
    const int64_t image[4] = {p.shape[0], channels, p.shape[1], p.shape[2]};
    int64_t shape[4];
    std::string error = layer->OutputShape(image, shape);
    if (!error.empty()) site().Reject(error);
    const int64_t values[4] = {shape[0], shape[2], shape[3], shape[1]};
    const int64_t bits[4] = {shape[0], shape[2], shape[3], WordsFor(shape[1]) * kWordBytes};

    std::vector<uint32_t> copy;
    ConvTensors tensors{};
    tensors.input = Words(site(), p, &copy);
    if (Has(kAdd)) tensors.residual = Residual(context, values);
    if (Has(kThreshold)) {
      tensors.output = Output(context, 0, bits);
    } else {
      tensors.output = Output(context, 0, values);
      if (Has(kSign)) tensors.bits = static_cast<uint32_t*>(Output(context, 1, bits));
    }
    RuntimeThreads pool(site().api, context);
    error = layer->Run(tensors, image, pool.AsParallel());
    if (!error.empty()) site().Reject(error);
  }

  const float* Residual(const KernelContext* context, const int64_t* shape) const {
    const Tensor residual = ReadTensor(site(), "residual", kFloat, 4, Input(context, kResidual));
    if (!std::equal(shape, shape + 4, residual.shape)) site().Reject("residual must have the shape of Y");
    return static_cast<const float*>(residual.data);
  }

  const float low_, high_;
};

void InferConvShape(const Operator& op, const ShapeContext* context) {
  const std::vector<Dimension> p = ReadShape(op.api, context, 0), w = ReadShape(op.api, context, 1);
  ConvAttributes attributes;
  if (p.empty() || w.empty() || !ReadConvAttributes(op.api, context, &attributes)) return;
  Dimension shape[4] = {p[0], OutDimension(attributes, 0, p[1], w[1]), OutDimension(attributes, 1, p[2], w[2]), w[0]};
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    if (op.outputs[i] == kUint8) shape[3] = BytesDimension(w[0]);
    WriteShape(op.api, context, i, op.outputs[i], shape);
  }
}

// ---- Packing ----

class PackSignsOp : public Kernel {
 public:
  PackSignsOp(const Operator& op, const KernelInfo* info) : Kernel(Site(op.api, op.name.c_str(), info)) {}

  void Compute(KernelContext* context) override {
    const Tensor x = ReadTensor(site(), "X", kFloat, 4, Input(context, 0));
    const Tensor limit = ReadTensor(site(), "limit", kFloat, 0, 4, Input(context, 1));
    Job job{};
    job.values = static_cast<const float*>(x.data);
    job.limit = static_cast<const float*>(limit.data);
    job.channels = x.shape[3];
    job.image_pixels = x.shape[1] * x.shape[2];
    job.pixels = x.shape[0] * job.image_pixels;
    if (job.channels < 1) site().Reject("X must have channels in its last dimension");
    if (limit.rank == 4 && limit.shape[0] == x.shape[0] && limit.shape[1] * limit.shape[2] * limit.shape[3] == 1) {
      job.by_image = true;
    } else if (limit.rank == 1 && limit.shape[0] == job.channels) {
      job.by_channel = true;
    } else if (limit.rank != 0) {
      site().Reject("limit must be one number, one a channel, or one an image, [N, 1, 1, 1]");
    }
    const int64_t shape[4] = {x.shape[0], x.shape[1], x.shape[2], WordsFor(job.channels) * kWordBytes};
    job.words = static_cast<uint32_t*>(Output(context, 0, shape));
    RuntimeThreads pool(site().api, context);
    const Parallel parallel = pool.AsParallel();
    job.pieces = std::clamp<int64_t>(job.pixels * job.channels / kPieceValues, 1, parallel.threads);
    parallel.run(parallel.host, job.pieces, RunPiece, &job);
  }

 private:
  // The least values of a piece: fewer are not worth another thread.
  static constexpr int64_t kPieceValues = 64 * 1024;

  struct Job {
    const float* values;
    const float* limit;
    uint32_t* words;
    int64_t pixels, channels, image_pixels, pieces;
    bool by_image, by_channel;
  };

  static void RunPiece(void* context, int64_t piece) {
    const Job& job = *static_cast<const Job*>(context);
    const int64_t last = job.pixels * (piece + 1) / job.pieces;
    for (int64_t pixel = job.pixels * piece / job.pieces; pixel < last;) {
      const int64_t image = pixel / job.image_pixels;
      const int64_t end = job.by_image ? std::min(last, (image + 1) * job.image_pixels) : last;
      const float* values = job.values + pixel * job.channels;
      uint32_t* words = job.words + pixel * WordsFor(job.channels);
      if (job.by_channel) {
        PackNhwcByChannel(values, job.limit, end - pixel, job.channels, words);
      } else {
        PackNhwc(values, job.limit[job.by_image ? image : 0], end - pixel, job.channels, words);
      }
      pixel = end;
    }
  }
};

void InferPackShape(const Operator& op, const ShapeContext* context) {
  std::vector<Dimension> shape = ReadShape(op.api, context, 0);
  if (shape.empty()) return;
  shape[3] = BytesDimension(shape[3]);
  WriteShape(op.api, context, 0, kUint8, shape.data());
}

// ---- Pooling ----

struct PoolAttributes {
  int64_t kernel[2] = {0, 0};
  ConvAttributes conv;  // of which a pool uses strides and pads

  std::vector<AttributeField> Fields() {
    return {{"kernel_shape", kernel, 2}, {"strides", conv.strides, 2}, {"pads", conv.pads, 4}};
  }

  std::string Check() const {
    ConvAttributes checked = conv;
    checked.channels = 1;
    std::string error = checked.Check();
    for (int axis = 0; error.empty() && axis < 2; ++axis) {
      const int64_t size = kernel[axis];
      if (size < 1 || size > INT32_MAX) return "kernel_shape must be two sizes, 1 or more";
      if (conv.pads[axis] >= size || conv.pads[axis + 2] >= size) {
        return "pads must be below the kernel: every window must meet the image";
      }
    }
    return error;
  }
};

class PackedMaxPoolOp : public Kernel {
 public:
  PackedMaxPoolOp(const Operator& op, const KernelInfo* info) : Kernel(Site(op.api, op.name.c_str(), info)) {
    ReadArrays(site(), info, pool_.Fields());
    const std::string error = pool_.Check();
    if (!error.empty()) site().Reject(error);
  }

  void Compute(KernelContext* context) override {
    const Tensor p = ReadTensor(site(), "P", kUint8, 4, Input(context, 0));
    const ConvAttributes& attributes = pool_.conv;
    int64_t shape[4] = {p.shape[0], 0, 0, p.shape[3]};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t size = p.shape[1 + axis];
      shape[1 + axis] = size < 1 ? 0 : attributes.OutSize(axis, size, pool_.kernel[axis]);
      if (shape[1 + axis] < 1) site().Reject("the kernel does not fit into the padded input");
    }
    std::vector<uint32_t> copy;
    Job job{};
    job.input = Words(site(), p, &copy);
    job.output = static_cast<uint32_t*>(Output(context, 0, shape));
    job.params.batch = 1;
    job.params.in_height = p.shape[1];
    job.params.in_width = p.shape[2];
    job.params.words = p.shape[3] / kWordBytes;
    job.params.kernel_height = pool_.kernel[0];
    job.params.kernel_width = pool_.kernel[1];
    job.params.stride_height = attributes.strides[0];
    job.params.stride_width = attributes.strides[1];
    job.params.pad_top = attributes.pads[0];
    job.params.pad_left = attributes.pads[1];
    job.params.out_height = shape[1];
    job.params.out_width = shape[2];
    RuntimeThreads pool(site().api, context);
    const Parallel parallel = pool.AsParallel();
    parallel.run(parallel.host, p.shape[0], RunImage, &job);
  }

 private:
  struct Job {
    BMaxPoolParams params;
    const uint32_t* input;
    uint32_t* output;
  };

  static void RunImage(void* context, int64_t image) {
    const Job& job = *static_cast<const Job*>(context);
    const BMaxPoolParams& p = job.params;
    BMaxPool2d(p, job.input + image * p.in_height * p.in_width * p.words,
               job.output + image * p.out_height * p.out_width * p.words);
  }

  PoolAttributes pool_;
};

void InferPoolShape(const Operator& op, const ShapeContext* context) {
  const std::vector<Dimension> p = ReadShape(op.api, context, 0);
  PoolAttributes pool;
  if (p.empty() || !ReadArrays(op.api, context, pool.Fields()) || !pool.Check().empty()) return;
  Dimension shape[4] = {p[0], {}, {}, p[3]};
  for (int axis = 0; axis < 2; ++axis) {
    Dimension kernel;
    kernel.value = pool.kernel[axis];
    shape[1 + axis] = OutDimension(pool.conv, axis, p[static_cast<size_t>(1 + axis)], kernel);
  }
  WriteShape(op.api, context, 0, kUint8, shape);
}

// ---- The table ----

template <class T>
Operator Make(std::string name, int variant, std::vector<ElementType> inputs, std::vector<ElementType> outputs,
              void (*infer_shape)(const Operator&, const ShapeContext*)) {
  Operator op{};
  op.name = std::move(name);
  op.variant = variant;
  op.inputs = std::move(inputs);
  op.outputs = std::move(outputs);
  op.create = [](const Operator& self, const KernelInfo* info) -> std::unique_ptr<Kernel> {
    return std::make_unique<T>(self, info);
  };
  op.infer_shape = infer_shape;
  return op;
}

// Lets the runtime put the output where the residual is. An addition in place touches one tensor instead of two, which
// at 56x56x64 saves a third of the time.
size_t ResidualToOutput(int** input_index, int** output_index) {
  static int residual = PackedConvOp::kResidual, output = 0;
  *input_index = &residual;
  *output_index = &output;
  return 1;
}

Operator MakeConv(int steps) {
  std::string name = "PackedConv2d";
  std::vector<ElementType> inputs{kUint8, kUint8, kFloat, kFloat}, outputs{kFloat};
  const auto add = [&](PostStep step, const char* suffix, size_t more_inputs) {
    if ((steps & step) == 0) return;
    name += suffix;
    inputs.resize(inputs.size() + more_inputs, kFloat);
  };
  add(kAdd, "Add", 1);
  add(kPRelu, "PRelu", 2);
  add(kClip, "Clip", 0);
  add(kSign, "Sign", 1);
  if ((steps & kSign) != 0) outputs.push_back(kUint8);
  Operator op = Make<PackedConvOp>(name, steps, inputs, outputs, InferConvShape);
  if ((steps & kAdd) != 0) op.in_place = ResidualToOutput;
  return op;
}

}  // namespace

std::vector<Operator> PackedOperators() {
  std::vector<Operator> operators{
      Make<PackSignsOp>("PackSigns", 0, {kFloat, kFloat}, {kUint8}, InferPackShape),
      Make<PackedMaxPoolOp>("PackedMaxPool2d", 0, {kUint8}, {kUint8}, InferPoolShape),
      Make<PackedConvOp>("PackedConv2dThreshold", kThreshold, {kUint8, kUint8, kInt32}, {kUint8}, InferConvShape),
  };
  for (int steps = 0; steps <= kAllSteps; ++steps) operators.push_back(MakeConv(steps));
  return operators;
}

}  // namespace bnnedge::ort
