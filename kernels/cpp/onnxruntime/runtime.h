// The parts of the runtime that every operator needs: errors, tensors, attributes, shapes, threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "bnnedge/conv.h"
#include "layer.h"

namespace bnnedge::ort {

constexpr const char* kDomain = "bnnedge";
constexpr size_t kMaxRank = 4;

// ---- Errors: they leave a function as exceptions and the library as a Status ----

// Thrown when a call to the runtime failed. It carries the status to the nearest Guard.
struct Failure {
  Status* status;
};

void Check(Status* status);

// The status of the exception that is being handled in a catch block.
Status* StatusOfException(const Api* api) noexcept;

// Runs `body` and turns an exception into a status, as none may leave this library.
template <class Body>
Status* Guard(const Api* api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return StatusOfException(api);
  }
}

// A node of the file, for messages and for reading it.
struct Site {
  const Api* api;
  std::string where;  // operator and node

  Site(const Api* runtime, const char* op, const KernelInfo* info);
  [[noreturn]] void Reject(const std::string& message) const;
};

// ---- Tensors ----

struct Tensor {
  size_t rank;
  int64_t shape[kMaxRank];
  void* data;
};

// `type`, `name` and the ranks (up to kMaxRank) are what the operator declares; the runtime checks types when it loads
// a file, not sizes.
Tensor ReadTensor(const Site& site, const char* name, ElementType type, size_t least_rank, size_t most_rank,
                  const Value* value);
inline Tensor ReadTensor(const Site& site, const char* name, ElementType type, size_t rank, const Value* value) {
  return ReadTensor(site, name, type, rank, rank, value);
}

// One value for each output channel.
template <class T>
std::vector<T> ReadParameter(const Site& site, const char* name, ElementType type, int64_t channels,
                             const Value* value) {
  const Tensor tensor = ReadTensor(site, name, type, 1, value);
  if (tensor.shape[0] != channels) {
    site.Reject(std::string(name) + " must have a value for each of the " + std::to_string(channels) +
                " filters of W, found " + std::to_string(tensor.shape[0]));
  }
  const T* data = static_cast<const T*>(tensor.data);
  return std::vector<T>(data, data + channels);
}

// One float for each output channel, from as many or from a single number.
std::vector<float> ReadValues(const Site& site, const char* name, int64_t channels, const Value* value);

// ---- Attributes ----

struct AttributeField {
  const char* name;
  int64_t* values;
  size_t count;
};

// All attributes of a convolution but `group`, which is a single number.
std::vector<AttributeField> ArrayFields(ConvAttributes* attributes);

// Reads attributes; the fields of those that are missing keep their values.
void ReadArrays(const Site& site, const KernelInfo* info, const std::vector<AttributeField>& fields);
// Missing attributes have ONNX's defaults, as in the function of the file; `channels` has no default.
ConvAttributes ReadConvAttributes(const Site& site, const KernelInfo* info);
float ReadFloat(const Site& site, const KernelInfo* info, const char* name);

// ---- Shapes ----

// The size of an axis, which may be known by its name only, such as "N".
struct Dimension {
  int64_t value = -1;
  std::string name;
};

// The shape of an input; empty unless it has four dimensions.
std::vector<Dimension> ReadShape(const Api* api, const ShapeContext* context, size_t index);

// Return false for an attribute that is wrong. Shapes stay unknown then, and the creation of the kernel reports the
// error.
bool ReadArrays(const Api* api, const ShapeContext* context, const std::vector<AttributeField>& fields);
bool ReadConvAttributes(const Api* api, const ShapeContext* context, ConvAttributes* attributes);

// The output size of a convolution along `axis`.
Dimension OutDimension(const ConvAttributes& attributes, int axis, const Dimension& input, const Dimension& kernel);
// The bytes of the packed signs of so many channels.
Dimension BytesDimension(const Dimension& channels);

void WriteShape(const Api* api, const ShapeContext* context, size_t index, ElementType type, const Dimension* shape);

// ---- Operators ----

// One node of a session.
class Kernel {
 public:
  explicit Kernel(Site site) : site_(std::move(site)) {}
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  virtual ~Kernel() = default;
  virtual void Compute(KernelContext* context) = 0;
  const Site& site() const { return site_; }

 protected:
  const Value* Input(const KernelContext* context, size_t index) const;
  // Returns nullptr for an optional output that nothing reads.
  void* Output(KernelContext* context, size_t index, const int64_t* shape) const;
  // Puts the inputs in [first, values->size()) but `skipped` into `values`. Returns whether all of them are constants.
  bool ConstantInputs(const KernelInfo* info, size_t first, size_t skipped, std::vector<const Value*>* values) const;

 private:
  const Site site_;
};

struct Operator;

// A convolution. Its parameters are constants of the graph. If the graph computes one of them, every run reads them
// anew.
class LayerKernel : public Kernel {
 public:
  void Compute(KernelContext* context) override;

 protected:
  static constexpr size_t kW = 1, kParameters = 2;  // inputs; the image is the first

  LayerKernel(const Operator& op, const KernelInfo* info);
  // Makes the layer if its inputs are constants. `skipped` is an input that the layer does not depend on.
  void MakeLayerOnce(const KernelInfo* info, size_t skipped);
  virtual std::unique_ptr<Layer> MakeLayer(const std::vector<const Value*>& inputs) const = 0;
  virtual void Run(Layer* layer, KernelContext* context) const = 0;
  const Operator& op() const { return op_; }
  const ConvAttributes& attributes() const { return attributes_; }

 private:
  const Operator& op_;
  const ConvAttributes attributes_;
  std::unique_ptr<Layer> layer_;
};

// An operator as the runtime knows it.
struct Operator : CustomOp {
  std::string name;
  const Api* api;
  std::vector<ElementType> inputs, outputs;
  int variant;  // tells operators with the same functions apart
  std::unique_ptr<Kernel> (*create)(const Operator& op, const KernelInfo* info);
  void (*infer_shape)(const Operator& op, const ShapeContext* context);
  size_t (*in_place)(int** input_index, int** output_index);  // or nullptr; the arrays are never freed
};

// The operators, without the fields that operators.cc fills in.
std::vector<Operator> FloatOperators();
std::vector<Operator> PackedOperators();
std::vector<Operator> StemOperators();

// ---- Threads ----

// Runs pieces of work on the runtime's own threads.
class RuntimeThreads {
 public:
  RuntimeThreads(const Api* api, const KernelContext* context) : api_(api), context_(context) {}
  // The interface does not say how many threads the session has, so `threads` is the most that can be useful.
  Parallel AsParallel();

 private:
  static void Run(void* host, int64_t count, void (*piece)(void* context, int64_t i), void* context);

  const Api* api_;
  const KernelContext* context_;
};

}  // namespace bnnedge::ort
