// The part of TensorFlow Lite's C interface that an external delegate meets, declared by hand: this library is built
// without any of its headers and runs in every interpreter that keeps the layout below (tflite-runtime 2.14,
// TensorFlow Lite 2.21, ai-edge-litert 1.0 to 2.3). Its policy is to append fields only, so each struct is declared up
// to the last field that is used here. Structs that this library hands out have room at the end for fields to come.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnnedge::tflite {

enum Status : int { kOk = 0, kError = 1 };

// Numbers of TfLiteType.
enum class Type : int { kFloat32 = 1, kInt32 = 2, kBool = 6, kInt8 = 9 };

// Numbers of TfLiteAllocationType whose data is there before the first inference and never changes.
constexpr int kMmapRo = 1;
constexpr int kPersistentRo = 5;

constexpr int kAffineQuantization = 1;
constexpr int kOptionalTensor = -1;
// Without it the interpreter prepares the original operators before it asks the delegate, and stops at those that it
// does not know.
constexpr int64_t kAllowDynamicTensors = 1;
constexpr int kBuiltinDelegate = 51;

// Numbers of BuiltinOperator.
enum class Builtin : int {
  kAdd = 0,
  kConv2d = 3,
  kMul = 18,
  kRelu = 19,
  kReluN1To1 = 20,
  kRelu6 = 21,
  kPad = 34,
  kGather = 36,
  kSub = 41,
  kStridedSlice = 45,
  kPrelu = 54,
  kMaximum = 55,
  kMinimum = 57,
};

// Numbers of BuiltinOperator that are claimed as a part of a stem only (stem_chain.h).
enum StemCode : int { kDequantize = 6, kMaxPool2d = 17, kSpaceToDepth = 26, kQuantize = 114 };

// Numbers of TfLitePadding.
constexpr int kPaddingSame = 1;
constexpr int kPaddingValid = 2;

// Numbers of TfLiteFusedActivation.
constexpr int kActivationNone = 0;
constexpr int kActivationRelu = 1;
constexpr int kActivationReluN1To1 = 2;
constexpr int kActivationRelu6 = 3;

struct IntArray {
  int32_t size;
  int32_t data[1];  // really [size]
};

struct FloatArray {
  int32_t size;
  float data[1];  // really [size]
};

// Tensor.quantization points to it if quantization_type is kAffineQuantization.
struct AffineQuantization {
  FloatArray* scale;
  IntArray* zero_point;
  int32_t quantized_dimension;
};

struct Tensor {
  int type;
  void* data;
  IntArray* dims;
  float scale;
  int32_t zero_point;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  void* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  int quantization_type;
  void* quantization;
  void* sparsity;
  const IntArray* dims_signature;
};

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  void* delegate;
};

// Node.builtin_data points to one of the structs that follow, which the interpreter fills in. They are declared as far
// as they are read here.
struct ArithmeticParams {  // of ADD, SUB and MUL
  int activation;
};

struct GatherParams {
  int axis;
  int batch_dims;
};

struct StridedSliceParams {
  int begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask;
};

struct ConvParams {
  int padding;
  int stride_width, stride_height;
  int activation;
  int dilation_width, dilation_height;
};

struct PoolParams {
  int padding;
  int stride_width, stride_height;
  int filter_width, filter_height;
  int activation;
};

struct SpaceToDepthParams {
  int block_size;
};

struct Context;

struct Registration {
  void* (*init)(Context*, const char* buffer, size_t length);
  void (*free)(Context*, void* user_data);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
  // It is passed by value: a longer one is harmless in both calling conventions, a shorter one would not be.
  uint64_t room[8];
};

struct Delegate {
  void* data;
  Status (*prepare)(Context*, Delegate*);
  void* copy_from_buffer_handle;
  void* copy_to_buffer_handle;
  void* free_buffer_handle;
  int64_t flags;
  void* opaque_delegate_builder;
  uint64_t room[8];
};

struct DelegateParams {
  Delegate* delegate;
  IntArray* nodes_to_replace;
  IntArray* input_tensors;
  IntArray* output_tensors;
};

struct Context {
  size_t tensors_size;
  Status (*get_execution_plan)(Context*, IntArray** plan);
  Tensor* tensors;  // moves when tensors are added: read it anew in every call
  void* impl;
  Status (*resize_tensor)(Context*, Tensor*, IntArray* size);  // takes ownership of `size`, releases it by free()
  void (*report_error)(Context*, const char* format, ...);
  Status (*add_tensors)(Context*, int count, int* first);
  Status (*get_node_and_registration)(Context*, int index, Node**, Registration**);
  Status (*replace_node_subsets)(Context*, Registration, const IntArray* nodes, Delegate*);
  int recommended_num_threads;
};

#if UINTPTR_MAX == UINT64_MAX
#define BNNEDGE_AT(type, field, offset) static_assert(offsetof(type, field) == (offset), #type "." #field)
BNNEDGE_AT(IntArray, data, 4);
BNNEDGE_AT(FloatArray, data, 4);
BNNEDGE_AT(AffineQuantization, quantized_dimension, 16);
BNNEDGE_AT(Tensor, data, 8);
BNNEDGE_AT(Tensor, dims, 16);
BNNEDGE_AT(Tensor, scale, 24);
BNNEDGE_AT(Tensor, zero_point, 28);
BNNEDGE_AT(Tensor, allocation_type, 32);
BNNEDGE_AT(Tensor, bytes, 40);
BNNEDGE_AT(Tensor, name, 56);
BNNEDGE_AT(Tensor, quantization_type, 80);
BNNEDGE_AT(Tensor, quantization, 88);
BNNEDGE_AT(Tensor, dims_signature, 104);
// The tensors lie in an array: their size counts as much as their fields.
static_assert(sizeof(Tensor) == 112, "Tensor");
BNNEDGE_AT(Node, outputs, 8);
BNNEDGE_AT(Node, user_data, 32);
BNNEDGE_AT(Node, builtin_data, 40);
BNNEDGE_AT(Node, custom_initial_data, 48);
BNNEDGE_AT(Node, custom_initial_data_size, 56);
BNNEDGE_AT(Node, delegate, 64);
BNNEDGE_AT(Registration, prepare, 16);
BNNEDGE_AT(Registration, profiling_string, 32);
BNNEDGE_AT(Registration, builtin_code, 40);
BNNEDGE_AT(Registration, custom_name, 48);
BNNEDGE_AT(Registration, version, 56);
BNNEDGE_AT(Registration, registration_external, 64);
BNNEDGE_AT(Registration, inplace_operator, 80);
BNNEDGE_AT(Registration, room, 88);
BNNEDGE_AT(Delegate, prepare, 8);
BNNEDGE_AT(Delegate, flags, 40);
BNNEDGE_AT(Delegate, opaque_delegate_builder, 48);
BNNEDGE_AT(Delegate, room, 56);
BNNEDGE_AT(DelegateParams, nodes_to_replace, 8);
BNNEDGE_AT(DelegateParams, output_tensors, 24);
BNNEDGE_AT(Context, get_execution_plan, 8);
BNNEDGE_AT(Context, tensors, 16);
BNNEDGE_AT(Context, resize_tensor, 32);
BNNEDGE_AT(Context, report_error, 40);
BNNEDGE_AT(Context, get_node_and_registration, 56);
BNNEDGE_AT(Context, replace_node_subsets, 64);
BNNEDGE_AT(Context, recommended_num_threads, 72);
#undef BNNEDGE_AT
#else
#error "the layout above was checked for 64-bit systems only"
#endif

}  // namespace bnnedge::tflite
