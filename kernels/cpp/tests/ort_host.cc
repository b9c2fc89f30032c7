#include "ort_host.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "host_scope.h"

extern "C" bnnedge::ort::Status* RegisterCustomOps(bnnedge::ort::SessionOptions* options,
                                                   const bnnedge::ort::ApiBase* base);

namespace bnnedge::ort {

// The types that the interface names only.
struct Status {
  std::string message;
};
struct SessionOptions {};
struct OpDomain {
  std::vector<const CustomOp*> operators;
};
struct TensorInfo {
  int type = 0;
  std::vector<int64_t> shape;
  std::vector<std::string> names;
};
struct Value {
  HostTensor* tensor;
};
struct KernelInfo {
  HostNode node;
  std::vector<Value> values;  // the node's inputs
};
struct KernelContext {
  std::vector<HostTensor> inputs;
  std::vector<Value> values;
  std::vector<HostTensor>* outputs;
  std::vector<Value> output_values;
  int64_t most_output_bytes;
  unsigned char poison;
  const Parallel* parallel;
};
struct OpAttribute {
  const HostAttribute* attribute;
};
struct ShapeContext {
  std::vector<TensorInfo> inputs;
  std::vector<bool> is_absent;
  mutable std::vector<OpAttribute> attributes;
  mutable std::map<size_t, TensorInfo> outputs;
};

namespace {

Status* Fail(const std::string& message) { return new Status{message}; }

int64_t ElementBytes(int type) {
  switch (type) {
    case 1:   // float
    case 6:   // int32
    case 12:  // uint32
      return 4;
    case 2:  // uint8
    case 3:  // int8
    case 9:  // bool
      return 1;
    case 10:  // float16
      return 2;
    default:
      return 8;
  }
}

const HostAttribute* Find(const std::vector<HostAttribute>& attributes, const char* name) {
  for (const HostAttribute& attribute : attributes) {
    if (attribute.name == name) return &attribute;
  }
  return nullptr;
}

OpDomain* domain_made = nullptr;

Api MakeApi() {
  Api api{};
  api.create_status = [](ErrorCode, const char* message) { return Fail(message); };
  api.get_error_code = [](const Status*) { return kFail; };
  api.get_error_message = [](const Status* status) { return status->message.c_str(); };
  api.release_status = [](Status* status) { delete status; };

  api.create_custom_op_domain = [](const char*, OpDomain** out) -> Status* {
    static OpDomain domain;  // lives as long as the library, which keeps a pointer to it
    domain_made = *out = &domain;
    return nullptr;
  };
  api.custom_op_domain_add = [](OpDomain* domain, const CustomOp* op) -> Status* {
    domain->operators.push_back(op);
    return nullptr;
  };
  api.add_custom_op_domain = [](SessionOptions*, OpDomain*) -> Status* { return nullptr; };

  api.get_tensor_mutable_data = [](Value* value, void** out) -> Status* {
    *out = value->tensor->data.get();
    return nullptr;
  };
  api.create_tensor_info = [](TensorInfo** out) -> Status* {
    *out = new TensorInfo;
    return nullptr;
  };
  api.release_tensor_info = [](TensorInfo* info) { delete info; };
  api.set_tensor_element_type = [](TensorInfo* info, ElementType type) -> Status* {
    info->type = type;
    return nullptr;
  };
  api.set_dimensions = [](TensorInfo* info, const int64_t* dimensions, size_t count) -> Status* {
    info->shape.assign(dimensions, dimensions + count);
    return nullptr;
  };
  api.get_tensor_element_type = [](const TensorInfo* info, ElementType* out) -> Status* {
    *out = static_cast<ElementType>(info->type);
    return nullptr;
  };
  api.get_dimensions_count = [](const TensorInfo* info, size_t* out) -> Status* {
    *out = info->shape.size();
    return nullptr;
  };
  api.get_dimensions = [](const TensorInfo* info, int64_t* dimensions, size_t count) -> Status* {
    std::copy_n(info->shape.begin(), std::min(count, info->shape.size()), dimensions);
    return nullptr;
  };
  api.get_symbolic_dimensions = [](const TensorInfo* info, const char** names, size_t count) -> Status* {
    for (size_t i = 0; i < count; ++i) names[i] = i < info->names.size() ? info->names[i].c_str() : "";
    return nullptr;
  };
  api.set_symbolic_dimensions = [](TensorInfo* info, const char** names, size_t count) -> Status* {
    info->names.assign(names, names + count);
    return nullptr;
  };
  api.get_tensor_type_and_shape = [](const Value* value, TensorInfo** out) -> Status* {
    const HostScope host;
    *out = new TensorInfo{value->tensor->type, value->tensor->shape, {}};
    return nullptr;
  };

  api.kernel_info_get_attribute_int64 = [](const KernelInfo* info, const char* name, int64_t* out) -> Status* {
    const HostAttribute* const found = Find(info->node.attributes, name);
    if (found == nullptr || found->type != HostAttributeType::kInt) return Fail("no such integer");
    *out = found->ints[0];
    return nullptr;
  };
  api.kernel_info_get_attribute_float = [](const KernelInfo* info, const char* name, float* out) -> Status* {
    const HostAttribute* const found = Find(info->node.attributes, name);
    if (found == nullptr || found->type != HostAttributeType::kFloat || found->floats.empty()) {
      return Fail("no such number");
    }
    *out = found->floats[0];
    return nullptr;
  };
  // A null buffer asks for the count, whatever the attribute's type is.
  api.kernel_info_get_attribute_array_int64 = [](const KernelInfo* info, const char* name, int64_t* out,
                                                 size_t* size) -> Status* {
    const HostAttribute* const found = Find(info->node.attributes, name);
    if (found == nullptr) return Fail("no such attribute");
    const size_t count = found->type == HostAttributeType::kInts ? found->ints.size() : 0;
    if (out != nullptr && *size < count) return Fail("the buffer is too small");
    if (out != nullptr) std::copy_n(found->ints.begin(), count, out);
    *size = count;
    return nullptr;
  };
  api.kernel_info_get_node_name = [](const KernelInfo* info, char* out, size_t* size) -> Status* {
    const size_t bytes = info->node.name.size() + 1;
    if (out != nullptr && *size < bytes) return Fail("the buffer is too small");
    if (out != nullptr) std::memcpy(out, info->node.name.c_str(), bytes);
    *size = bytes;
    return nullptr;
  };
  api.kernel_info_get_constant_input = [](const KernelInfo* info, size_t index, int* is_constant,
                                          const Value** out) -> Status* {
    *is_constant = 0;
    *out = nullptr;
    if (index >= info->node.inputs.size()) return Fail("no such input");
    const HostTensor& tensor = info->node.inputs[index];
    if (tensor.is_absent || !tensor.is_constant) return nullptr;
    *is_constant = 1;
    *out = &info->values[index];
    return nullptr;
  };

  api.kernel_context_get_input = [](const KernelContext* context, size_t index, const Value** out) -> Status* {
    *out = nullptr;
    if (index >= context->inputs.size()) return Fail("no such input");
    if (!context->inputs[index].is_absent) *out = &context->values[index];
    return nullptr;
  };
  api.kernel_context_get_output = [](KernelContext* context, size_t index, const int64_t* dimensions, size_t count,
                                     Value** out) -> Status* {
    const HostScope host;
    if (index >= context->outputs->size()) return Fail("no such output");
    HostTensor& output = (*context->outputs)[index];
    output.shape.assign(dimensions, dimensions + count);
    const int64_t bytes = output.Bytes(context->most_output_bytes);
    if (bytes < 0) return Fail("the output cannot be allocated");
    output.Allocate(bytes);
    std::memset(output.data.get(), context->poison, static_cast<size_t>(bytes));
    *out = &context->output_values[index];
    return nullptr;
  };
  api.kernel_context_parallel_for = [](const KernelContext* context, void (*piece)(void*, size_t), size_t total, size_t,
                                       void* user) -> Status* {
    if (context->parallel == nullptr) {
      while (total-- > 0) piece(user, total);
      return nullptr;
    }
    struct Job {
      void (*piece)(void*, size_t);
      void* user;
    } job{piece, user};
    context->parallel->run(
        context->parallel->host, static_cast<int64_t>(total),
        [](void* shared, int64_t i) {
          const Job& each = *static_cast<const Job*>(shared);
          each.piece(each.user, static_cast<size_t>(i));
        },
        &job);
    return nullptr;
  };

  api.shape_context_get_input = [](const ShapeContext* context, size_t index, TensorInfo** out) -> Status* {
    *out = nullptr;
    if (index >= context->inputs.size()) return Fail("no such input");
    if (!context->is_absent[index]) *out = const_cast<TensorInfo*>(&context->inputs[index]);
    return nullptr;
  };
  api.shape_context_get_attribute = [](const ShapeContext* context, const char* name,
                                       const OpAttribute** out) -> Status* {
    *out = nullptr;
    for (const OpAttribute& each : context->attributes) {
      if (each.attribute->name == name) {
        *out = &each;
        return nullptr;
      }
    }
    return Fail("no such attribute");
  };
  api.read_attribute = [](const OpAttribute* op, AttributeType type, void* data, size_t bytes,
                          size_t* written) -> Status* {
    const HostAttribute& attribute = *op->attribute;
    if ((type == kInt) != (attribute.type == HostAttributeType::kInt) ||
        (type == kInts) != (attribute.type == HostAttributeType::kInts)) {
      return Fail("another type");
    }
    *written = attribute.ints.size() * sizeof(int64_t);
    if (bytes < *written) return Fail("the buffer is too small");
    std::copy(attribute.ints.begin(), attribute.ints.end(), static_cast<int64_t*>(data));
    return nullptr;
  };
  api.shape_context_set_output = [](const ShapeContext* context, size_t index, const TensorInfo* info) -> Status* {
    context->outputs[index] = *info;
    return nullptr;
  };
  return api;
}

const Api& TheApi() {
  static const Api api = MakeApi();
  return api;
}

std::string Text(Status* status) {
  if (status == nullptr) return {};
  const std::string message = status->message.empty() ? "a failure without a message" : status->message;
  delete status;
  return message;
}

}  // namespace

int64_t HostTensor::Bytes(int64_t most) const {
  int64_t bytes = ElementBytes(type);
  if (std::count(shape.begin(), shape.end(), 0) > 0) bytes = 0;
  for (const int64_t size : shape) {
    if (size < 0 || (bytes > 0 && size > most / bytes)) return -1;
    bytes *= size;
  }
  return bytes;
}

void HostTensor::Allocate(int64_t bytes) {
  data.reset(std::calloc(static_cast<size_t>(std::max<int64_t>(bytes, 1)), 1), std::free);
}

std::vector<const CustomOp*> RegisteredOperators() {
  static const ApiBase base = {[](uint32_t version) { return version > kApiVersion ? nullptr : &TheApi(); },
                               [] { return "host"; }};
  SessionOptions options;
  const std::string error = domain_made == nullptr ? Text(RegisterCustomOps(&options, &base)) : "";
  if (!error.empty()) {
    std::fprintf(stderr, "%s\n", error.c_str());
    std::abort();
  }
  return domain_made->operators;
}

HostKernel::HostKernel(const CustomOp* op, const HostNode& node, int64_t most_output_bytes, const Parallel* parallel)
    : op_(op), most_output_bytes_(most_output_bytes), parallel_(parallel) {
  KernelInfo info{node, {}};
  for (HostTensor& tensor : info.node.inputs) info.values.push_back({&tensor});
  error_ = Text(op->create_kernel_v2(op, &TheApi(), &info, &kernel_));
  if (!error_.empty()) kernel_ = nullptr;
}

HostKernel::~HostKernel() {
  if (kernel_ != nullptr) op_->kernel_destroy(kernel_);
}

std::string HostKernel::Compute(const std::vector<HostTensor>& inputs, unsigned char poison,
                                std::vector<HostTensor>* outputs) const {
  KernelContext context{inputs, {}, outputs, {}, most_output_bytes_, poison, parallel_};
  outputs->resize(op_->get_output_count(op_));
  for (size_t i = 0; i < outputs->size(); ++i) (*outputs)[i].type = op_->get_output_type(op_, i);
  for (HostTensor& tensor : context.inputs) context.values.push_back({&tensor});
  for (HostTensor& tensor : *outputs) context.output_values.push_back({&tensor});
  const HostScope plugin(false);
  return Text(op_->kernel_compute_v2(kernel_, &context));
}

bool InferShapes(const CustomOp* op, const HostNode& node, std::vector<HostTensor>* outputs, std::string* error) {
  ShapeContext context;
  for (const HostTensor& tensor : node.inputs) {
    context.inputs.push_back({tensor.type, tensor.shape, tensor.names});
    context.is_absent.push_back(tensor.is_absent);
  }
  for (const HostAttribute& attribute : node.attributes) context.attributes.push_back({&attribute});
  *error = Text(op->infer_output_shape(op, &context));
  if (!error->empty() || context.outputs.empty()) return false;
  outputs->resize(op->get_output_count(op));
  for (const auto& [index, info] : context.outputs) {
    HostTensor& output = outputs->at(index);
    output.type = info.type;
    output.shape = info.shape;
    output.names = info.names;
  }
  return true;
}

}  // namespace bnnedge::ort
