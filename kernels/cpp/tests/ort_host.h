// A small ONNX Runtime for tests: the table of functions that a custom operator library meets, and nodes with any
// attributes and tensors, most of which the real one rejects. Data is always there: a tensor holds as many bytes as
// its shape says, in a block of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../onnxruntime/abi.h"
#include "bnnedge/conv.h"

namespace bnnedge::ort {

struct HostTensor {
  bool is_absent = false;
  bool is_constant = true;
  int type = kFloat;
  std::vector<int64_t> shape;
  std::vector<std::string> names;  // of unknown sizes, for shape inference; empty: none
  std::shared_ptr<void> data;

  // The bytes of the tensor, or -1 if a size is below 0 or the bytes exceed `most`.
  int64_t Bytes(int64_t most) const;
  // Gives the tensor data of zero bytes.
  void Allocate(int64_t bytes);
};

enum class HostAttributeType { kInt, kInts, kFloat, kFloats, kString };

struct HostAttribute {
  std::string name;
  HostAttributeType type = HostAttributeType::kInt;
  std::vector<int64_t> ints;
  std::vector<float> floats;
  std::string text;
};

struct HostNode {
  std::string name;
  std::vector<HostAttribute> attributes;
  std::vector<HostTensor> inputs;
};

// The operators that RegisterCustomOps registers.
std::vector<const CustomOp*> RegisteredOperators();

class HostKernel {
 public:
  // Creates the operator's kernel for a node; `error()` says why not. Without `parallel` pieces of work run backwards,
  // one after another.
  HostKernel(const CustomOp* op, const HostNode& node, int64_t most_output_bytes, const Parallel* parallel = nullptr);
  ~HostKernel();
  HostKernel(const HostKernel&) = delete;
  HostKernel& operator=(const HostKernel&) = delete;

  bool created() const { return kernel_ != nullptr; }
  const std::string& error() const { return error_; }

  // Runs the kernel with the node's constants and other values for the rest; several threads may do so at once. Fills
  // `outputs` with `poison` beforehand. Returns an empty string, or what went wrong.
  std::string Compute(const std::vector<HostTensor>& inputs, unsigned char poison,
                      std::vector<HostTensor>* outputs) const;

 private:
  const CustomOp* op_;
  const int64_t most_output_bytes_;
  const Parallel* parallel_;
  void* kernel_ = nullptr;
  std::string error_;
};

// The outputs' shapes as inferred from the inputs' types and shapes; false if they stay unknown or fail (`error`).
bool InferShapes(const CustomOp* op, const HostNode& node, std::vector<HostTensor>* outputs, std::string* error);

}  // namespace bnnedge::ort
