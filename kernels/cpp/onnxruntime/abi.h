// The part of ONNX Runtime's C interface that a custom operator library meets, declared by hand: this library is built
// without any of its headers. The interface is a table of function pointers that only ever grows; the positions below
// are those of API version 17 (ONNX Runtime 1.17) and hold in every later one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnnedge::ort {

constexpr uint32_t kApiVersion = 17;
// The first version whose runtime asks an operator which output may take the place of an input
// (CustomOp::get_may_inplace).
constexpr uint32_t kInPlaceApiVersion = 18;

struct Status;  // a null pointer is success
struct SessionOptions;
struct OpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct TensorInfo;
struct Value;
struct OpAttribute;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6 };
enum AttributeType : int { kInt = 1, kInts = 2 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kDefaultMemory = 0 };

using Unused = void (*)();

struct Api {
  Status* (*create_status)(ErrorCode, const char* message);
  ErrorCode (*get_error_code)(const Status*);
  const char* (*get_error_message)(const Status*);
  Unused unused_3[23];
  Status* (*create_custom_op_domain)(const char* domain, OpDomain** out);
  Status* (*custom_op_domain_add)(OpDomain*, const struct CustomOp*);
  Status* (*add_custom_op_domain)(SessionOptions*, OpDomain*);
  Unused unused_29[22];
  Status* (*get_tensor_mutable_data)(Value*, void** out);
  Unused unused_52[5];
  Status* (*create_tensor_info)(TensorInfo** out);
  Status* (*set_tensor_element_type)(TensorInfo*, ElementType);
  Status* (*set_dimensions)(TensorInfo*, const int64_t* dimensions, size_t count);
  Status* (*get_tensor_element_type)(const TensorInfo*, ElementType* out);
  Status* (*get_dimensions_count)(const TensorInfo*, size_t* out);
  Status* (*get_dimensions)(const TensorInfo*, int64_t* dimensions, size_t count);
  Status* (*get_symbolic_dimensions)(const TensorInfo*, const char** names, size_t count);
  Unused unused_64[1];
  Status* (*get_tensor_type_and_shape)(const Value*, TensorInfo** out);
  Unused unused_66[19];
  Status* (*kernel_info_get_attribute_float)(const KernelInfo*, const char* name, float* out);
  Status* (*kernel_info_get_attribute_int64)(const KernelInfo*, const char* name, int64_t* out);
  Unused unused_87[3];
  Status* (*kernel_context_get_input)(const KernelContext*, size_t index, const Value** out);
  Status* (*kernel_context_get_output)(KernelContext*, size_t index, const int64_t* dimensions, size_t count,
                                       Value** out);
  Unused unused_92[1];
  void (*release_status)(Status*);
  Unused unused_94[5];
  void (*release_tensor_info)(TensorInfo*);
  Unused unused_100[63];
  Status* (*kernel_info_get_attribute_array_int64)(const KernelInfo*, const char* name, int64_t* out, size_t* size);
  Unused unused_164[80];
  Status* (*kernel_info_get_node_name)(const KernelInfo*, char* out, size_t* size);
  Unused unused_245[4];
  Status* (*kernel_info_get_constant_input)(const KernelInfo*, size_t index, int* is_constant, const Value** out);
  Unused unused_250[18];
  Status* (*shape_context_get_input)(const ShapeContext*, size_t index, TensorInfo** out);  // the context's own
  Status* (*shape_context_get_attribute)(const ShapeContext*, const char* name, const OpAttribute** out);
  Status* (*shape_context_set_output)(const ShapeContext*, size_t index, const TensorInfo*);
  Status* (*set_symbolic_dimensions)(TensorInfo*, const char** names, size_t count);
  Status* (*read_attribute)(const OpAttribute*, AttributeType, void* data, size_t bytes, size_t* bytes_out);
  Unused unused_273[1];
  Status* (*kernel_context_parallel_for)(const KernelContext*, void (*piece)(void* user, size_t index), size_t total,
                                         size_t batches, void* user);
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);  // a null pointer if the runtime is older
  const char* (*get_version)();
};

struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);  // null result: CPU
  ElementType (*get_input_type)(const CustomOp*, size_t index);
  size_t (*get_input_count)(const CustomOp*);
  ElementType (*get_output_type)(const CustomOp*, size_t index);
  size_t (*get_output_count)(const CustomOp*);
  void (*kernel_compute)(void* kernel, KernelContext*);
  void (*kernel_destroy)(void* kernel);
  Characteristic (*get_input_characteristic)(const CustomOp*, size_t index);
  Characteristic (*get_output_characteristic)(const CustomOp*, size_t index);
  MemoryType (*get_input_memory_type)(const CustomOp*, size_t index);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*kernel_compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_output_shape)(const CustomOp*, ShapeContext*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  size_t (*get_may_inplace)(int** input_index, int** output_index);
  void (*release_may_inplace)(int* input_index, int* output_index);
  size_t (*get_alias_map)(int** input_index, int** output_index);
  void (*release_alias_map)(int* input_index, int* output_index);
};

#define BNNEDGE_SLOT(field, index) static_assert(offsetof(Api, field) == sizeof(void*) * (index), #field)
BNNEDGE_SLOT(create_status, 0);
BNNEDGE_SLOT(get_error_message, 2);
BNNEDGE_SLOT(create_custom_op_domain, 26);
BNNEDGE_SLOT(add_custom_op_domain, 28);
BNNEDGE_SLOT(get_tensor_mutable_data, 51);
BNNEDGE_SLOT(create_tensor_info, 57);
BNNEDGE_SLOT(get_symbolic_dimensions, 63);
BNNEDGE_SLOT(get_tensor_type_and_shape, 65);
BNNEDGE_SLOT(kernel_info_get_attribute_float, 85);
BNNEDGE_SLOT(kernel_info_get_attribute_int64, 86);
BNNEDGE_SLOT(kernel_context_get_input, 90);
BNNEDGE_SLOT(kernel_context_get_output, 91);
BNNEDGE_SLOT(release_status, 93);
BNNEDGE_SLOT(release_tensor_info, 99);
BNNEDGE_SLOT(kernel_info_get_attribute_array_int64, 163);
BNNEDGE_SLOT(kernel_info_get_node_name, 244);
BNNEDGE_SLOT(kernel_info_get_constant_input, 249);
BNNEDGE_SLOT(shape_context_get_input, 268);
BNNEDGE_SLOT(shape_context_get_attribute, 269);
BNNEDGE_SLOT(shape_context_set_output, 270);
BNNEDGE_SLOT(set_symbolic_dimensions, 271);
BNNEDGE_SLOT(read_attribute, 272);
BNNEDGE_SLOT(kernel_context_parallel_for, 274);
#undef BNNEDGE_SLOT

#if UINTPTR_MAX == UINT64_MAX
#define BNNEDGE_AT(field, offset) static_assert(offsetof(CustomOp, field) == (offset), #field)
BNNEDGE_AT(create_kernel, 8);
BNNEDGE_AT(get_execution_provider, 24);
BNNEDGE_AT(get_input_type, 32);
BNNEDGE_AT(get_output_count, 56);
BNNEDGE_AT(kernel_destroy, 72);
BNNEDGE_AT(get_input_memory_type, 96);
BNNEDGE_AT(create_kernel_v2, 136);
BNNEDGE_AT(infer_output_shape, 152);
BNNEDGE_AT(get_end_version, 168);
static_assert(sizeof(CustomOp) == 208, "CustomOp");
#undef BNNEDGE_AT
#endif

}  // namespace bnnedge::ort
