// Fuzz target: one node of any operator of the library with any attributes and tensors. Creating its kernel, running it
// and inferring its shape must succeed or end in a message; what succeeds fills its output, agrees with the inferred
// shape, and gives the same bits with every kernel, also for another size in between.
//
// An input of the fuzzer, as tests/kernels/fuzz_seeds.py writes it from real files; N is a byte below 254, or 254 and a
// signed byte, or 255 and 8 bytes:
//   text  operator; 1 byte flags: 1 constants arrive as inputs, 2 the batch is known by name only, 4 all sizes of X are
//   N     attributes, each: text name, 1 byte type, N count, count times N (floats: 4 bytes; a string: 1 byte)
//   N     inputs, each: 1 byte element type (0: absent), N rank, rank times N, N bytes of data (repeated to fill), data
//   4 * N another shape of the first input
// where text is N bytes and their count before them.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fuzz_check.h"
#include "ort_host.h"

namespace {

using bnnedge::Found;
using bnnedge::ort::CustomOp;
using bnnedge::ort::HostAttribute;
using bnnedge::ort::HostAttributeType;
using bnnedge::ort::HostKernel;
using bnnedge::ort::HostNode;
using bnnedge::ort::HostTensor;

constexpr int64_t kMostTensorBytes = 64 * 1024;
constexpr int64_t kMostItems = 16;

// Reads the fuzzer's input, and zeros behind its end.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  uint8_t Byte() { return data_ == end_ ? 0 : *data_++; }
  int64_t Number() {
    const uint8_t first = Byte();
    if (first < 254) return first;
    if (first == 254) return static_cast<int8_t>(Byte());
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value |= static_cast<uint64_t>(Byte()) << (8 * i);
    return static_cast<int64_t>(value);
  }
  int64_t Count(int64_t most) { return std::clamp<int64_t>(Number(), 0, most); }
  std::vector<uint8_t> Bytes(int64_t count) {
    const auto taken = static_cast<size_t>(std::clamp<int64_t>(count, 0, end_ - data_));
    std::vector<uint8_t> bytes(data_, data_ + taken);
    data_ += taken;
    return bytes;
  }
  std::string Text() {
    const std::vector<uint8_t> bytes = Bytes(Number());
    return {bytes.begin(), bytes.end()};
  }

 private:
  const uint8_t *data_, *end_;
};

HostAttribute ReadAttribute(Reader* reader) {
  HostAttribute attribute;
  attribute.name = reader->Text();
  attribute.type = static_cast<HostAttributeType>(reader->Byte() % 5);
  const int64_t count = attribute.type == HostAttributeType::kInt ? 1 : reader->Count(kMostItems);
  for (int64_t i = 0; i < count; ++i) {
    float number = 0;
    switch (attribute.type) {
      case HostAttributeType::kInt:
      case HostAttributeType::kInts:
        attribute.ints.push_back(reader->Number());
        break;
      case HostAttributeType::kFloat:
      case HostAttributeType::kFloats: {
        const std::vector<uint8_t> bytes = reader->Bytes(sizeof(float));
        if (bytes.size() == sizeof(number)) std::memcpy(&number, bytes.data(), sizeof(number));
        attribute.floats.push_back(number);
        break;
      }
      case HostAttributeType::kString:
        attribute.text += static_cast<char>(reader->Byte());
    }
  }
  attribute.floats.resize(std::max<size_t>(attribute.floats.size(), 1));
  return attribute;
}

// Returns false if no process could hold the tensor.
bool Fill(const std::vector<uint8_t>& pattern, HostTensor* tensor) {
  const int64_t bytes = tensor->Bytes(kMostTensorBytes);
  if (bytes < 0) return false;
  tensor->Allocate(bytes);
  auto* const to = static_cast<uint8_t*>(tensor->data.get());
  for (int64_t i = 0; i < bytes && !pattern.empty(); ++i) {
    const auto at = static_cast<size_t>(i);
    to[i] = pattern[at % pattern.size()];
  }
  return true;
}

struct Case {
  const CustomOp* op = nullptr;
  HostNode node;
  std::vector<HostTensor> other;  // the inputs with another size of the first one; empty if there is none
  int flags = 0;
};

bool ReadCase(const uint8_t* data, size_t size, Case* out) {
  static const std::vector<const CustomOp*> operators = bnnedge::ort::RegisteredOperators();
  Reader reader(data, size);
  const std::string name = reader.Text();
  for (const CustomOp* op : operators) {
    if (op->get_name(op) == name) out->op = op;
  }
  if (out->op == nullptr) return false;
  out->node.name = "node";
  out->flags = reader.Byte();
  for (int64_t left = reader.Count(kMostItems); left > 0; --left) {
    out->node.attributes.push_back(ReadAttribute(&reader));
  }
  std::vector<uint8_t> first_pattern;
  for (int64_t i = 0, count = reader.Count(kMostItems); i < count; ++i) {
    HostTensor tensor;
    tensor.type = reader.Byte() % 17;
    tensor.is_absent = tensor.type == 0;
    tensor.is_constant = i > 0 && (out->flags & 1) == 0;
    for (int64_t left = reader.Count(kMostItems); left > 0; --left) tensor.shape.push_back(reader.Number());
    const std::vector<uint8_t> pattern = reader.Bytes(reader.Number());
    if (!tensor.is_absent && !Fill(pattern, &tensor)) return false;
    if (i == 0) first_pattern = pattern;
    out->node.inputs.push_back(std::move(tensor));
  }
  if (out->node.inputs.empty() || out->node.inputs[0].is_absent) return true;
  HostTensor resized = out->node.inputs[0];
  for (int64_t& dimension : resized.shape) dimension = reader.Number();
  if (Fill(first_pattern, &resized)) {
    out->other = out->node.inputs;
    out->other[0] = resized;
  }
  return true;
}

void CheckMessage(const std::string& error) {
  if (!bnnedge::IsOneLine(error + "\n")) Found("a failure says '" + error + "'");
}

// The outputs of each run of the case, without data where the run failed.
std::vector<std::vector<HostTensor>> Run(const Case& c, const char* kernel_name) {
  setenv("BNNEDGE_KERNEL", kernel_name, 1);
  const HostKernel kernel(c.op, c.node, kMostTensorBytes);
  std::vector<std::vector<HostTensor>> outputs;
  if (!kernel.created()) {
    CheckMessage(kernel.error());
    return outputs;
  }
  const auto run = [&](const std::vector<HostTensor>& inputs, unsigned char poison) {
    outputs.emplace_back();
    const std::string error = kernel.Compute(inputs, poison, &outputs.back());
    if (error.empty()) return;
    CheckMessage(error);
    for (HostTensor& output : outputs.back()) output.data = nullptr;
  };
  run(c.node.inputs, 0x11);
  if (!c.other.empty()) run(c.other, 0x77);
  run(c.node.inputs, 0xee);
  return outputs;
}

bool SameTensor(const HostTensor& a, const HostTensor& b) {
  if (a.data == nullptr || b.data == nullptr) return true;
  if (a.shape != b.shape) return false;
  const auto bytes = static_cast<size_t>(a.Bytes(kMostTensorBytes));
  if (a.type != bnnedge::ort::kFloat) return std::memcmp(a.data.get(), b.data.get(), bytes) == 0;
  return bnnedge::FirstDifferentFloat(a.data.get(), b.data.get(), bytes) == bytes;
}

bool SameData(const std::vector<HostTensor>& a, const std::vector<HostTensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), SameTensor);
}

// Whether packed input has bits set beyond its channels, where the bit contract wants zeros. What a convolution makes
// of them is up to the kernel.
bool HasSpareBits(const HostNode& node, const std::vector<HostTensor>& inputs) {
  if (inputs.empty()) return false;
  const HostTensor& x = inputs[0];
  if (x.type != bnnedge::ort::kUint8 || x.data == nullptr || x.shape.empty() || x.shape.back() < 1) return false;
  int64_t channels = 1;
  for (const HostAttribute& attribute : node.attributes) {
    const bool counts = attribute.name == "channels" || attribute.name == "group";
    if (counts && !attribute.ints.empty() && __builtin_mul_overflow(channels, attribute.ints[0], &channels))
      return true;
  }
  const int64_t bytes = x.Bytes(kMostTensorBytes);
  for (int64_t i = 0; i < bytes; ++i) {
    const int64_t first = i % x.shape.back() * 8;
    const int64_t used = std::clamp<int64_t>(channels - first, 0, 8);
    if (static_cast<const uint8_t*>(x.data.get())[i] >> used != 0) return true;
  }
  return false;
}

void CheckShapes(const Case& c, const std::vector<HostTensor>& outputs) {
  HostNode node = c.node;
  if (!node.inputs.empty()) {
    HostTensor& x = node.inputs[0];
    x.names.assign(x.shape.size(), "");
    for (size_t i = 0; i < x.shape.size(); ++i) {
      if ((c.flags & 4) == 0 && (i > 0 || (c.flags & 2) == 0)) continue;
      x.shape[i] = -1;
      x.names[i] = i == 0 ? "N" : "";
    }
  }
  std::vector<HostTensor> inferred;
  std::string error;
  if (!bnnedge::ort::InferShapes(c.op, node, &inferred, &error)) {
    if (!error.empty()) CheckMessage(error);
    return;
  }
  for (size_t k = 0; k < outputs.size(); ++k) {
    const HostTensor &output = outputs[k], &guess = inferred[k];
    if (output.data == nullptr || guess.shape.empty()) continue;
    if (guess.type != output.type) Found("the inferred type is another");
    if (guess.shape.size() != output.shape.size()) Found("the inferred rank is another");
    for (size_t i = 0; i < output.shape.size(); ++i) {
      if (guess.shape[i] < 0 && guess.names[i].empty()) Found("an unknown size has no name");
      if (guess.shape[i] >= 0 && guess.shape[i] != output.shape[i]) Found("the inferred shape is another");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Case c;
  if (!ReadCase(data, size, &c)) return -1;
  const std::vector<const char*>& kernels = bnnedge::ConvKernelNames();
  const uint32_t hash = bnnedge::Hash(data, size);
  const char* const kernel = kernels[hash % kernels.size()];
  const char* const other = kernels[kernels.size() - (hash >> 29 == 0 ? 1 : 2)];  // the last is slow
  const std::vector<std::vector<HostTensor>> found = Run(c, kernel), wanted = Run(c, other);
  CheckShapes(c, found.empty() ? std::vector<HostTensor>{} : found.front());
  if (found.empty()) return 0;
  if (!SameData(found.front(), found.back())) Found("two runs differ; perhaps an output is not written");
  if (HasSpareBits(c.node, c.node.inputs) || HasSpareBits(c.node, c.other)) return 0;
  for (size_t i = 0; i < std::min(found.size(), wanted.size()); ++i) {
    if (!SameData(found[i], wanted[i])) Found(std::string(kernel) + " and " + other + " differ");
  }
  return 0;
}
