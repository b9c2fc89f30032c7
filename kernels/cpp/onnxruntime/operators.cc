// The operators of the ONNX domain "bnnedge", version 1, for ONNX Runtime's CPU provider:
//
//   BinaryConv2d(X, W, multiplier, bias) -> Y      Y = float(s) * multiplier + bias, product and sum rounded apart
//   BinaryConv2dThreshold(X, W, threshold) -> Y    Y = s < threshold ? -1 : +1
//
// as export/targets/onnx_functions.py defines them. A file carries both as functions of standard operators too; ONNX
// Runtime leaves a node alone that some provider has a kernel for, and inlines the function of any other.
#include <algorithm>
#include <atomic>
#include <climits>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "abi.h"
#include "layer.h"

#if defined(_WIN32)
#define BNNEDGE_EXPORT extern "C" __declspec(dllexport)
#else
#define BNNEDGE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace bnnedge::ort {
namespace {

constexpr const char* kDomain = "bnnedge";
constexpr int kDomainVersion = 1;
constexpr size_t kX = 0, kW = 1, kParameters = 2;

// A call to the runtime failed; carries its status to the nearest Guard.
struct Failure {
  Status* status;
};

void Check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

// Runs `body` and turns whatever it throws into a status: no exception may leave this library.
template <class Body>
Status* Guard(const Api* api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return api->create_status(kFail, "bnnedge: out of memory");
  } catch (const std::exception& exception) {
    return api->create_status(kFail, exception.what());
  } catch (...) {
    return api->create_status(kFail, "bnnedge: unknown error");
  }
}

[[noreturn]] void Reject(const Api* api, const std::string& where, const std::string& message) {
  throw Failure{api->create_status(kInvalidArgument, (where + ": " + message).c_str())};
}

// One of the two operators as the runtime knows it.
struct Operator : CustomOp {
  const char* name;
  bool has_threshold;
  const Api* api;
};

const Operator& Self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

size_t InputCount(const CustomOp* op) { return Self(op).has_threshold ? 3 : 4; }

ElementType InputType(const CustomOp* op, size_t index) {
  if (index == kX) return kFloat;
  if (index == kW) return kUint8;
  return Self(op).has_threshold ? kInt32 : kFloat;
}

// ---- Tensors ----

constexpr size_t kMaxRank = 4;

struct Tensor {
  int64_t shape[kMaxRank];
  void* data;
};

class InfoOwner {
 public:
  InfoOwner(const Api* api, TensorInfo* info) : api_(api), info_(info) {}
  InfoOwner(const InfoOwner&) = delete;
  InfoOwner& operator=(const InfoOwner&) = delete;
  ~InfoOwner() { api_->release_tensor_info(info_); }

 private:
  const Api* api_;
  TensorInfo* info_;
};

// `type`, `name` and `rank` (1 to kMaxRank) are what the operator declares; the runtime checks types when it loads a
// file, not sizes.
Tensor ReadTensor(const Api* api, const std::string& where, const char* name, ElementType type, size_t rank,
                  const Value* value) {
  if (value == nullptr) Reject(api, where, std::string(name) + " is missing");
  TensorInfo* info = nullptr;
  Check(api->get_tensor_type_and_shape(value, &info));
  const InfoOwner owner(api, info);
  ElementType found{};
  Check(api->get_tensor_element_type(info, &found));
  if (found != type) Reject(api, where, std::string(name) + " has another element type than the operator's");
  size_t found_rank = 0;
  Check(api->get_dimensions_count(info, &found_rank));
  if (found_rank != rank) {
    Reject(api, where, std::string(name) + " must have " + std::to_string(rank) + " dimensions, found " +
                           std::to_string(found_rank));
  }
  Tensor tensor{};
  Check(api->get_dimensions(info, tensor.shape, rank));
  Check(api->get_tensor_mutable_data(const_cast<Value*>(value), &tensor.data));
  return tensor;
}

// One value for each output channel.
template <class T>
std::vector<T> ReadParameter(const Api* api, const std::string& where, const char* name, ElementType type,
                             int64_t channels, const Value* value) {
  const Tensor tensor = ReadTensor(api, where, name, type, 1, value);
  if (tensor.shape[0] != channels) {
    Reject(api, where, std::string(name) + " must have a value for each of the " + std::to_string(channels) +
                           " filters of W, found " + std::to_string(tensor.shape[0]));
  }
  const T* data = static_cast<const T*>(tensor.data);
  return std::vector<T>(data, data + channels);
}

// ---- Attributes ----

struct AttributeField {
  const char* name;
  int64_t* values;
  size_t count;
};

// All but `group`, which is a single number.
std::vector<AttributeField> ArrayFields(Window* window) {
  return {{"strides", window->strides, 2},
          {"pads", window->pads, 4},
          {"dilations", window->dilations, 2},
          {"channels", &window->channels, 1}};
}

// The number of values, or -1 if the node has no such attribute. Of one of another type it is 0 (or 1 for a number).
int64_t ArraySize(const Api* api, const KernelInfo* info, const char* name) {
  size_t size = 0;
  Status* status = api->kernel_info_get_attribute_array_int64(info, name, nullptr, &size);
  if (status == nullptr) return static_cast<int64_t>(size);
  api->release_status(status);
  return -1;
}

// Attributes that are missing have ONNX's defaults, as in the function of the file; `channels` has none.
Window ReadWindow(const Api* api, const std::string& where, const KernelInfo* info) {
  Window window;
  for (const AttributeField& field : ArrayFields(&window)) {
    const int64_t size = ArraySize(api, info, field.name);
    if (size < 0) continue;
    if (size != static_cast<int64_t>(field.count)) {
      Reject(api, where, std::string("attribute ") + field.name + " must be a list of " +
                             std::to_string(field.count) + " integers, found " + std::to_string(size));
    }
    size_t count = field.count;
    Check(api->kernel_info_get_attribute_array_int64(info, field.name, field.values, &count));
  }
  if (window.channels == 0) Reject(api, where, "attribute channels = [channels of one group] is missing");
  if (ArraySize(api, info, "group") >= 0) {
    Status* status = api->kernel_info_get_attribute_int64(info, "group", &window.group);
    if (status != nullptr) {
      api->release_status(status);
      Reject(api, where, "attribute group must be one integer");
    }
  }
  const std::string error = window.Check();
  if (!error.empty()) Reject(api, where, error);
  return window;
}

// ---- Kernels ----

// The runtime's own threads.
class ThreadPool {
 public:
  ThreadPool(const Api* api, const KernelContext* context) : api_(api), context_(context) {}
  // The interface does not tell how many threads the session has. This many they can at most use.
  Parallel AsParallel() {
    static const int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    return {Run, this, threads};
  }

 private:
  struct Job {
    void (*piece)(void* context, int64_t i);
    void* context;
  };

  static void Run(void* host, int64_t count, void (*piece)(void* context, int64_t i), void* context) {
    const ThreadPool& pool = *static_cast<const ThreadPool*>(host);
    Job job{piece, context};
    if (count > 1) {
      const auto total = static_cast<size_t>(count);
      Status* status = pool.api_->kernel_context_parallel_for(pool.context_, RunPiece, total, 0, &job);
      if (status == nullptr) return;
      pool.api_->release_status(status);  // pieces may be done twice
    }
    for (int64_t i = 0; i < count; ++i) piece(context, i);
  }

  static void RunPiece(void* user, size_t index) {
    const Job& job = *static_cast<const Job*>(user);
    job.piece(job.context, static_cast<int64_t>(index));
  }

  const Api* api_;
  const KernelContext* context_;
};

class Kernel {
 public:
  Kernel(const Operator& op, const Api* api, const KernelInfo* info) : op_(op), api_(api), where_(Where(info)) {
    window_ = ReadWindow(api, where_, info);
    std::vector<const Value*> inputs(InputCount(&op), nullptr);
    for (size_t i = kW; i < inputs.size(); ++i) {
      int is_constant = 0;
      Check(api->kernel_info_get_constant_input(info, i, &is_constant, &inputs[i]));
      if (is_constant == 0) return;
    }
    layer_ = MakeLayer(inputs);
  }

  const Api* api() const { return api_; }

  void Compute(KernelContext* context) {
    if (layer_ != nullptr) {
      Run(layer_.get(), context);
      return;
    }
    // Weights that the graph computes: the general case, not the fast one.
    std::vector<const Value*> inputs(InputCount(&op_), nullptr);
    for (size_t i = 0; i < inputs.size(); ++i) Check(api_->kernel_context_get_input(context, i, &inputs[i]));
    const std::unique_ptr<Layer> layer = MakeLayer(inputs);
    Run(layer.get(), context);
  }

 private:
  std::string Where(const KernelInfo* info) const {
    size_t size = 0;
    Check(api_->kernel_info_get_node_name(info, nullptr, &size));
    std::string name(size, '\0');
    if (size > 0) Check(api_->kernel_info_get_node_name(info, &name[0], &size));
    return std::string(kDomain) + "::" + op_.name + " '" + name.c_str() + "'";
  }

  std::unique_ptr<Layer> MakeLayer(const std::vector<const Value*>& inputs) const {
    const Tensor w = ReadTensor(api_, where_, "W", kUint8, 4, inputs[kW]);
    const Weights weights{{w.shape[0], w.shape[1], w.shape[2], w.shape[3]}, static_cast<const uint8_t*>(w.data)};
    Transform transform;
    transform.layout = Layout::kNchw;
    if (op_.has_threshold) {
      transform.kind = OutputKind::kBits;
      transform.layout = Layout::kNhwc;
      transform.threshold =
          ReadParameter<int32_t>(api_, where_, "threshold", kInt32, w.shape[0], inputs[kParameters]);
    } else {
      transform.kind = OutputKind::kFloat;
      transform.multiplier = ReadParameter<float>(api_, where_, "multiplier", kFloat, w.shape[0], inputs[kParameters]);
      transform.bias = ReadParameter<float>(api_, where_, "bias", kFloat, w.shape[0], inputs[kParameters + 1]);
    }
    std::string error;
    std::unique_ptr<Layer> layer = Layer::Create(window_, weights, std::move(transform), &error);
    if (layer == nullptr) Reject(api_, where_, error);
    return layer;
  }

  void Run(Layer* layer, KernelContext* context) const {
    const Value* input = nullptr;
    Check(api_->kernel_context_get_input(context, kX, &input));
    const Tensor x = ReadTensor(api_, where_, "X", kFloat, 4, input);
    int64_t shape[4];
    std::string error = layer->OutputShape(x.shape, shape);
    if (!error.empty()) Reject(api_, where_, error);
    Value* output = nullptr;
    Check(api_->kernel_context_get_output(context, 0, shape, 4, &output));
    void* y = nullptr;
    Check(api_->get_tensor_mutable_data(output, &y));
    ThreadPool pool(api_, context);
    error = layer->Run(static_cast<const float*>(x.data), x.shape, static_cast<float*>(y), pool.AsParallel());
    if (!error.empty()) Reject(api_, where_, error);
  }

  const Operator& op_;
  const Api* api_;
  std::string where_;
  Window window_;
  std::unique_ptr<Layer> layer_;  // null if an input other than X is not constant
};

// ---- Shapes ----

// A size that may be known by name only, as "N" is.
struct Dimension {
  int64_t value = -1;
  std::string name;
};

// Empty for anything but four dimensions.
std::vector<Dimension> ReadShape(const Api* api, const ShapeContext* context, size_t index) {
  TensorInfo* info = nullptr;  // stays the context's
  Check(api->shape_context_get_input(context, index, &info));
  if (info == nullptr) return {};
  size_t rank = 0;
  Check(api->get_dimensions_count(info, &rank));
  if (rank != kMaxRank) return {};
  int64_t values[kMaxRank] = {};
  const char* names[kMaxRank] = {};
  Check(api->get_dimensions(info, values, rank));
  Check(api->get_symbolic_dimensions(info, names, rank));
  std::vector<Dimension> shape(rank);
  for (size_t i = 0; i < rank; ++i) {
    shape[i].value = values[i];
    if (names[i] != nullptr) shape[i].name = names[i];
  }
  return shape;
}

// False for an attribute that creating the kernel will reject: shapes stay unknown and the error comes from there.
bool ReadAttribute(const Api* api, const ShapeContext* context, const char* name, AttributeType type, int64_t* values,
                   size_t count) {
  const OpAttribute* attribute = nullptr;
  Status* status = api->shape_context_get_attribute(context, name, &attribute);
  if (status != nullptr || attribute == nullptr) {
    if (status != nullptr) api->release_status(status);
    return true;
  }
  size_t bytes = 0;
  status = api->read_attribute(attribute, type, values, count * sizeof(int64_t), &bytes);
  if (status == nullptr) return type == kInt || bytes == count * sizeof(int64_t);
  api->release_status(status);
  return false;
}

// A dimension without a value must have a name, or the runtime takes -1 for its value; equal names mean equal sizes.
std::string NewName() {
  static std::atomic<int64_t> count{0};
  return "bnnedge_size_" + std::to_string(++count);
}

Dimension OutDimension(const Window& window, int axis, const Dimension& input, const Dimension& kernel) {
  Dimension out;
  if (kernel.value < 1) {
    out.name = NewName();
  } else if (input.value >= 0) {
    out.value = window.OutSize(axis, input.value, kernel.value);
  } else if (window.strides[axis] == 1 && window.OutSize(axis, kernel.value, kernel.value) == kernel.value) {
    out.name = input.name;
  } else if (!input.name.empty()) {
    const int64_t room = window.pads[axis] + window.pads[axis + 2] - window.dilations[axis] * (kernel.value - 1) - 1;
    out.name = "(" + input.name + (room < 0 ? "" : "+") + std::to_string(room) + ")/" +
               std::to_string(window.strides[axis]) + "+1";
  }
  if (out.value < 0 && out.name.empty()) out.name = NewName();
  return out;
}

void InferShape(const Operator& op, ShapeContext* context) {
  const Api* api = op.api;
  const std::vector<Dimension> x = ReadShape(api, context, kX), w = ReadShape(api, context, kW);
  Window window;
  bool is_known = !x.empty() && !w.empty() && ReadAttribute(api, context, "group", kInt, &window.group, 1);
  for (const AttributeField& field : ArrayFields(&window)) {
    is_known = is_known && ReadAttribute(api, context, field.name, kInts, field.values, field.count);
  }
  is_known = is_known && window.Check().empty();
  for (size_t i = 0; is_known && i < 4; ++i) is_known = x[i].value <= INT_MAX && w[i].value <= INT_MAX;
  if (!is_known) return;
  Dimension y[4] = {x[0], w[0], OutDimension(window, 0, x[2], w[1]), OutDimension(window, 1, x[3], w[2])};
  int64_t values[4];
  const char* names[4];
  for (size_t i = 0; i < 4; ++i) {
    if (y[i].value < 0 && y[i].name.empty()) y[i].name = NewName();
    values[i] = y[i].value;
    names[i] = y[i].value < 0 ? y[i].name.c_str() : "";
  }
  TensorInfo* info = nullptr;
  Check(api->create_tensor_info(&info));
  const InfoOwner owner(api, info);
  Check(api->set_tensor_element_type(info, kFloat));
  Check(api->set_dimensions(info, values, 4));
  Check(api->set_symbolic_dimensions(info, names, 4));
  Check(api->shape_context_set_output(context, 0, info));
}

// ---- Registration ----

Operator MakeOperator(const char* name, bool has_threshold, const Api* api) {
  Operator op{};
  op.name = name;
  op.has_threshold = has_threshold;
  op.api = api;
  op.version = kApiVersion;
  op.get_name = [](const CustomOp* self) { return Self(self).name; };
  op.get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  op.get_input_type = InputType;
  op.get_input_count = InputCount;
  op.get_output_type = [](const CustomOp*, size_t) { return kFloat; };
  op.get_output_count = [](const CustomOp*) { return size_t{1}; };
  op.get_input_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.get_output_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.get_input_memory_type = [](const CustomOp*, size_t) { return kDefaultMemory; };
  op.create_kernel_v2 = [](const CustomOp* self, const Api* runtime, const KernelInfo* info, void** kernel) {
    return Guard(runtime, [&] { *kernel = std::make_unique<Kernel>(Self(self), runtime, info).release(); });
  };
  op.kernel_compute_v2 = [](void* kernel, KernelContext* context) {
    Kernel& self = *static_cast<Kernel*>(kernel);
    return Guard(self.api(), [&] { self.Compute(context); });
  };
  op.kernel_destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.infer_output_shape = [](const CustomOp* self, ShapeContext* context) {
    return Guard(Self(self).api, [&] { InferShape(Self(self), context); });
  };
  op.get_start_version = [](const CustomOp*) { return kDomainVersion; };
  op.get_end_version = [](const CustomOp*) { return kDomainVersion; };
  return op;
}

// What one copy of the runtime in this process knows of us. The runtime keeps pointers to it.
struct Registration {
  Registration(const ApiBase* runtime, const Api* table)
      : base(runtime),
        api(table),
        conv(MakeOperator("BinaryConv2d", false, table)),
        conv_threshold(MakeOperator("BinaryConv2dThreshold", true, table)) {
    Check(api->create_custom_op_domain(kDomain, &domain));
    Check(api->custom_op_domain_add(domain, &conv));
    Check(api->custom_op_domain_add(domain, &conv_threshold));
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  const ApiBase* base;
  const Api* api;
  Operator conv, conv_threshold;
  OpDomain* domain = nullptr;
};

void Register(SessionOptions* options, const ApiBase* base, const Api* api) {
  static std::mutex mutex;
  // Never destroyed: at the end of a process the runtime may outlive this library's destructors.
  static auto* registrations = new std::deque<Registration>;
  const std::lock_guard<std::mutex> lock(mutex);
  Registration* own = nullptr;
  for (Registration& each : *registrations) {
    if (each.base == base) own = &each;
  }
  if (own == nullptr) own = &registrations->emplace_back(base, api);
  Check(api->add_custom_op_domain(options, own->domain));
}

}  // namespace
}  // namespace bnnedge::ort

BNNEDGE_EXPORT bnnedge::ort::Status* RegisterCustomOps(bnnedge::ort::SessionOptions* options,
                                                       const bnnedge::ort::ApiBase* base) {
  const bnnedge::ort::Api* api = base->get_api(bnnedge::ort::kApiVersion);
  if (api == nullptr) {
    const std::string message = std::string("bnnedge needs ONNX Runtime 1.17 or newer, found ") + base->get_version();
    return base->get_api(1)->create_status(bnnedge::ort::kFail, message.c_str());
  }
  return bnnedge::ort::Guard(api, [&] { bnnedge::ort::Register(options, base, api); });
}
