#include "runtime.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <exception>
#include <new>
#include <thread>

namespace bnnedge::ort {
namespace {

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

// The number of values of an attribute, or -1 if the node does not have it. For an attribute of another type it is 0 (1
// for a number).
int64_t ArraySize(const Api* api, const KernelInfo* info, const char* name) {
  size_t size = 0;
  Status* status = api->kernel_info_get_attribute_array_int64(info, name, nullptr, &size);
  if (status == nullptr) return static_cast<int64_t>(size);
  api->release_status(status);
  return -1;
}

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

}  // namespace

void Check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

Status* StatusOfException(const Api* api) noexcept {
  try {
    throw;
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

Site::Site(const Api* runtime, const char* op, const KernelInfo* info) : api(runtime) {
  size_t size = 0;
  Check(api->kernel_info_get_node_name(info, nullptr, &size));
  std::string name(size, '\0');
  if (size > 0) Check(api->kernel_info_get_node_name(info, &name[0], &size));
  where = std::string(kDomain) + "::" + op + " '" + name.c_str() + "'";
}

void Site::Reject(const std::string& message) const {
  throw Failure{api->create_status(kInvalidArgument, (where + ": " + message).c_str())};
}

// ---- Tensors ----

Tensor ReadTensor(const Site& site, const char* name, ElementType type, size_t least_rank, size_t most_rank,
                  const Value* value) {
  const Api* api = site.api;
  if (value == nullptr) site.Reject(std::string(name) + " is missing");
  TensorInfo* info = nullptr;
  Check(api->get_tensor_type_and_shape(value, &info));
  const InfoOwner owner(api, info);
  ElementType found{};
  Check(api->get_tensor_element_type(info, &found));
  if (found != type) site.Reject(std::string(name) + " has another element type than the operator's");
  Tensor tensor{};
  Check(api->get_dimensions_count(info, &tensor.rank));
  if (tensor.rank < least_rank || tensor.rank > most_rank) {
    site.Reject(std::string(name) + " must have " + std::to_string(most_rank) + " dimensions, found " +
                std::to_string(tensor.rank));
  }
  Check(api->get_dimensions(info, tensor.shape, tensor.rank));
  Check(api->get_tensor_mutable_data(const_cast<Value*>(value), &tensor.data));
  return tensor;
}

std::vector<float> ReadValues(const Site& site, const char* name, int64_t channels, const Value* value) {
  const Tensor tensor = ReadTensor(site, name, kFloat, 0, 1, value);
  if (tensor.rank == 1) return ReadParameter<float>(site, name, kFloat, channels, value);
  return std::vector<float>(static_cast<size_t>(channels), *static_cast<const float*>(tensor.data));
}

// ---- Attributes ----

std::vector<AttributeField> ArrayFields(ConvAttributes* attributes) {
  return {{"strides", attributes->strides, 2},
          {"pads", attributes->pads, 4},
          {"dilations", attributes->dilations, 2},
          {"channels", &attributes->channels, 1}};
}

void ReadArrays(const Site& site, const KernelInfo* info, const std::vector<AttributeField>& fields) {
  for (const AttributeField& field : fields) {
    const int64_t size = ArraySize(site.api, info, field.name);
    if (size < 0) continue;
    if (size != static_cast<int64_t>(field.count)) {
      site.Reject(std::string("attribute ") + field.name + " must be a list of " + std::to_string(field.count) +
                  " integers, found " + std::to_string(size));
    }
    size_t count = field.count;
    Check(site.api->kernel_info_get_attribute_array_int64(info, field.name, field.values, &count));
  }
}

ConvAttributes ReadConvAttributes(const Site& site, const KernelInfo* info) {
  ConvAttributes attributes;
  ReadArrays(site, info, ArrayFields(&attributes));
  if (attributes.channels == 0) site.Reject("attribute channels = [channels of one group] is missing");
  if (ArraySize(site.api, info, "group") >= 0) {
    Status* status = site.api->kernel_info_get_attribute_int64(info, "group", &attributes.group);
    if (status != nullptr) {
      site.api->release_status(status);
      site.Reject("attribute group must be one integer");
    }
  }
  const std::string error = attributes.Check();
  if (!error.empty()) site.Reject(error);
  return attributes;
}

float ReadFloat(const Site& site, const KernelInfo* info, const char* name) {
  float value = 0.0f;
  Status* status = site.api->kernel_info_get_attribute_float(info, name, &value);
  if (status != nullptr) {
    site.api->release_status(status);
    site.Reject(std::string("attribute ") + name + " must be one float");
  }
  return value;
}

// ---- Shapes ----

std::vector<Dimension> ReadShape(const Api* api, const ShapeContext* context, size_t index) {
  TensorInfo* info = nullptr;  // owned by the context
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
    if (values[i] > INT_MAX) return {};
    shape[i].value = values[i];
    if (names[i] != nullptr) shape[i].name = names[i];
  }
  return shape;
}

bool ReadArrays(const Api* api, const ShapeContext* context, const std::vector<AttributeField>& fields) {
  return std::all_of(fields.begin(), fields.end(), [&](const AttributeField& field) {
    return ReadAttribute(api, context, field.name, kInts, field.values, field.count);
  });
}

bool ReadConvAttributes(const Api* api, const ShapeContext* context, ConvAttributes* attributes) {
  return ReadAttribute(api, context, "group", kInt, &attributes->group, 1) &&
         ReadArrays(api, context, ArrayFields(attributes)) && attributes->Check().empty();
}

Dimension OutDimension(const ConvAttributes& attributes, int axis, const Dimension& input, const Dimension& kernel) {
  Dimension out;
  if (kernel.value < 1) {
    out.name = NewName();
  } else if (input.value >= 0) {
    out.value = attributes.OutSize(axis, input.value, kernel.value);
  } else if (attributes.strides[axis] == 1 && attributes.OutSize(axis, kernel.value, kernel.value) == kernel.value) {
    out.name = input.name;
  } else if (!input.name.empty()) {
    const int64_t room =
        attributes.pads[axis] + attributes.pads[axis + 2] - attributes.dilations[axis] * (kernel.value - 1) - 1;
    out.name = "(" + input.name + (room < 0 ? "" : "+") + std::to_string(room) + ")/" +
               std::to_string(attributes.strides[axis]) + "+1";
  }
  if (out.value < 0 && out.name.empty()) out.name = NewName();
  return out;
}

Dimension BytesDimension(const Dimension& channels) {
  Dimension bytes;
  if (channels.value >= 0) bytes.value = WordsFor(channels.value) * int64_t{sizeof(uint32_t)};
  return bytes;
}

void WriteShape(const Api* api, const ShapeContext* context, size_t index, ElementType type, const Dimension* shape) {
  std::string made_up[kMaxRank];
  int64_t values[kMaxRank];
  const char* names[kMaxRank];
  for (size_t i = 0; i < kMaxRank; ++i) {
    values[i] = shape[i].value;
    if (values[i] < 0) made_up[i] = shape[i].name.empty() ? NewName() : shape[i].name;
    names[i] = made_up[i].c_str();
  }
  TensorInfo* info = nullptr;
  Check(api->create_tensor_info(&info));
  const InfoOwner owner(api, info);
  Check(api->set_tensor_element_type(info, type));
  Check(api->set_dimensions(info, values, kMaxRank));
  Check(api->set_symbolic_dimensions(info, names, kMaxRank));
  Check(api->shape_context_set_output(context, index, info));
}

// ---- Operators ----

const Value* Kernel::Input(const KernelContext* context, size_t index) const {
  const Value* value = nullptr;
  Check(site_.api->kernel_context_get_input(context, index, &value));
  return value;
}

void* Kernel::Output(KernelContext* context, size_t index, const int64_t* shape) const {
  Value* value = nullptr;
  Check(site_.api->kernel_context_get_output(context, index, shape, kMaxRank, &value));
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  Check(site_.api->get_tensor_mutable_data(value, &data));
  return data;
}

bool Kernel::ConstantInputs(const KernelInfo* info, size_t first, size_t skipped,
                            std::vector<const Value*>* values) const {
  for (size_t i = first; i < values->size(); ++i) {
    if (i == skipped) continue;
    int is_constant = 0;
    Check(site_.api->kernel_info_get_constant_input(info, i, &is_constant, &(*values)[i]));
    if (is_constant == 0) return false;
  }
  return true;
}

// ---- Threads ----

Parallel RuntimeThreads::AsParallel() {
  static const int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return {Run, this, threads};
}

void RuntimeThreads::Run(void* host, int64_t count, void (*piece)(void* context, int64_t i), void* context) {
  struct Job {
    void (*piece)(void* context, int64_t i);
    void* context;
  };
  const RuntimeThreads& pool = *static_cast<const RuntimeThreads*>(host);
  Job job{piece, context};
  if (count > 1) {
    const auto run_piece = [](void* user, size_t index) {
      const Job& own = *static_cast<const Job*>(user);
      own.piece(own.context, static_cast<int64_t>(index));
    };
    const auto total = static_cast<size_t>(count);
    Status* status = pool.api_->kernel_context_parallel_for(pool.context_, run_piece, total, 0, &job);
    if (status == nullptr) return;
    pool.api_->release_status(status);  // a piece may be computed twice
  }
  for (int64_t i = 0; i < count; ++i) piece(context, i);
}

LayerKernel::LayerKernel(const Operator& op, const KernelInfo* info)
    : Kernel(Site(op.api, op.name.c_str(), info)), op_(op), attributes_(ReadConvAttributes(site(), info)) {}

void LayerKernel::MakeLayerOnce(const KernelInfo* info, size_t skipped) {
  std::vector<const Value*> inputs(op_.inputs.size(), nullptr);
  if (ConstantInputs(info, kW, skipped, &inputs)) layer_ = MakeLayer(inputs);
}

void LayerKernel::Compute(KernelContext* context) {
  if (layer_ != nullptr) {
    Run(layer_.get(), context);
    return;
  }
  std::vector<const Value*> inputs(op_.inputs.size(), nullptr);
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = Input(context, i);
  const std::unique_ptr<Layer> layer = MakeLayer(inputs);
  Run(layer.get(), context);
}

}  // namespace bnnedge::ort
