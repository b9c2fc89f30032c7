#include "tflite_host.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <set>

#include "host_scope.h"

namespace bnnedge::tflite {
namespace {

// ---- FlatBuffers, every offset checked ----

class File {
 public:
  File(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <typename T>
  T Read(size_t at) const {
    Need(at, sizeof(T));
    T value;
    std::memcpy(&value, data_ + at, sizeof(T));
    return value;
  }
  void Need(size_t at, size_t bytes) const {
    if (at > size_ || bytes > size_ - at) throw Refused("an offset leads out of the file");
  }
  const uint8_t* At(size_t at) const { return data_ + at; }
  size_t Follow(size_t at) const { return at + Read<uint32_t>(at); }

 private:
  const uint8_t* data_;
  size_t size_;
};

struct Span {
  size_t at = 0, count = 0;  // offset, and number of elements
};

class Table {
 public:
  Table() = default;
  Table(const File* file, size_t at) : file_(file), at_(at) {
    vtable_ = static_cast<size_t>(static_cast<int64_t>(at) - file->Read<int32_t>(at));
    vtable_bytes_ = file->Read<uint16_t>(vtable_);
    file->Need(vtable_, vtable_bytes_);
  }

  explicit operator bool() const { return file_ != nullptr; }

  template <typename T>
  T Scalar(size_t slot, T otherwise) const {
    const size_t at = Field(slot);
    return at == 0 ? otherwise : file_->Read<T>(at);
  }
  Table Child(size_t slot) const {
    const size_t at = Field(slot);
    return at == 0 ? Table() : Table(file_, file_->Follow(at));
  }
  Span Vector(size_t slot, size_t element_bytes) const {
    const size_t field = Field(slot);
    if (field == 0) return {};
    const size_t at = file_->Follow(field);
    const size_t count = file_->Read<uint32_t>(at);
    // The real interpreter's verifier demands aligned vectors too.
    if (at % 4 != 0) throw Refused("a vector is not aligned");
    if (element_bytes == 8 && (at + 4) % 8 != 0) throw Refused("a vector is not aligned");
    file_->Need(at + 4, count * element_bytes);
    return {at + 4, count};
  }
  std::vector<int32_t> Ints(size_t slot) const {
    const Span span = Vector(slot, 4);
    std::vector<int32_t> values;
    for (size_t i = 0; i < span.count; ++i) values.push_back(file_->Read<int32_t>(span.at + 4 * i));
    return values;
  }
  std::vector<Table> Tables(size_t slot) const {
    const Span span = Vector(slot, 4);
    std::vector<Table> tables;
    for (size_t i = 0; i < span.count; ++i) tables.emplace_back(file_, file_->Follow(span.at + 4 * i));
    return tables;
  }
  // The text ends at the first NUL, since the interpreter reads it as a C string.
  std::string Text(size_t slot) const {
    const Span span = Vector(slot, 1);
    const std::string text(reinterpret_cast<const char*>(file_->At(span.at)), span.count);
    return text.c_str();
  }
  const File& file() const { return *file_; }
  // The offset of a scalar in the file; 0 if it is left out.
  size_t Place(size_t slot) const { return Field(slot); }

 private:
  size_t Field(size_t slot) const {
    const size_t entry = 4 + 2 * slot;
    if (entry + 2 > vtable_bytes_) return 0;
    const size_t offset = file_->Read<uint16_t>(vtable_ + entry);
    return offset == 0 ? 0 : at_ + offset;
  }

  const File* file_ = nullptr;
  size_t at_ = 0, vtable_ = 0, vtable_bytes_ = 0;
};

// ---- The schema ----

constexpr int kCustom = 32;
constexpr int kArenaRw = 2;

// The number and the bytes of each of the schema's tensor types in the C interface.
struct TypeRow {
  int type;
  int64_t bytes;
};
constexpr TypeRow kTypes[] = {{1, 4}, {10, 2}, {2, 4}, {3, 1}, {4, 8}, {5, 0}, {6, 1}, {7, 2}, {8, 8}, {9, 1}, {11, 8}};

int64_t ElementBytesOf(int type) {
  for (const TypeRow& row : kTypes) {
    if (row.type == type) return row.bytes;
  }
  return 0;
}

// The bytes of a tensor, or -1 if the real interpreter would not compute them.
int64_t BytesOf(int type, const std::vector<int32_t>& shape) {
  int64_t bytes = ElementBytesOf(type);
  for (const int32_t size : shape) {
    if (size < 0 || (size > 0 && bytes > (int64_t{1} << 40) / size)) return -1;
    bytes *= size;
  }
  return bytes;
}

// The slots of an operator's option table, in the order of the fields of the C structs, and the widths of these.
struct OptionRow {
  int builtin;
  std::vector<std::pair<size_t, size_t>> slots;  // slot, bytes in the file
};
const std::vector<OptionRow>& OptionRows() {
  static const std::vector<OptionRow> rows = {
      {0, {{0, 1}}},                                           // ADD: activation
      {41, {{0, 1}}},                                          // SUB
      {36, {{0, 4}, {1, 4}}},                                  // GATHER: axis, batch_dims
      {45, {{0, 4}, {1, 4}, {2, 4}, {3, 4}, {4, 4}}},          // STRIDED_SLICE: masks
      {26, {{0, 4}}},                                          // SPACE_TO_DEPTH: block_size
      {3, {{0, 1}, {1, 4}, {2, 4}, {3, 1}, {4, 4}, {5, 4}}},   // CONV_2D: padding, strides, activation, dilations
      {17, {{0, 1}, {1, 4}, {2, 4}, {3, 4}, {4, 4}, {5, 1}}},  // MAX_POOL_2D: padding, strides, filter, activation
  };
  return rows;
}

// ---- What the C interface points to ----

struct Free {
  void operator()(void* bytes) const { std::free(bytes); }
};
using Block = std::unique_ptr<void, Free>;

IntArray* MakeIntArray(const std::vector<int32_t>& values) {
  auto* const array = static_cast<IntArray*>(std::malloc(sizeof(int32_t) * (values.size() + 1)));
  if (array == nullptr) std::abort();
  array->size = static_cast<int32_t>(values.size());
  std::copy(values.begin(), values.end(), array->data);
  return array;
}

std::vector<int32_t> ItemsOf(const IntArray* array) { return {array->data, array->data + array->size}; }

struct HostNode {
  Node node{};
  Registration registration{};
  std::string custom_name;
  Block inputs, outputs, builtin_data, custom_data, nodes_to_replace, params;
  bool is_delegate = false;

  ~HostNode() {
    if (is_delegate && registration.free != nullptr && node.user_data != nullptr) {
      registration.free(context, node.user_data);
    }
  }
  Context* context = nullptr;

  void Connect(const std::vector<int32_t>& in, const std::vector<int32_t>& out) {
    inputs.reset(node.inputs = MakeIntArray(in));
    outputs.reset(node.outputs = MakeIntArray(out));
  }
};

struct HostTensor {
  std::string name;
  Block memory;
  Block dims;
  Block scales, zero_points;
  std::unique_ptr<AffineQuantization> quantization;
};

}  // namespace

struct Host::Implementation {
  Implementation(const uint8_t* data, size_t size, int threads, int64_t most, std::string* said)
      : file(data, size), most_bytes(most), error(said) {
    context.impl = this;
    context.recommended_num_threads = threads;
    context.get_execution_plan = [](Context* c, IntArray** out) { return Of(c).GetPlan(out); };
    context.resize_tensor = [](Context* c, Tensor* tensor, IntArray* shape) { return Of(c).Resize(tensor, shape); };
    context.report_error = Report;
    context.add_tensors = [](Context*, int, int*) { return kError; };
    context.get_node_and_registration = [](Context* c, int index, Node** node, Registration** registration) {
      Implementation& self = Of(c);
      if (index < 0 || static_cast<size_t>(index) >= self.nodes.size()) return kError;
      *node = &self.nodes[static_cast<size_t>(index)]->node;
      *registration = &self.nodes[static_cast<size_t>(index)]->registration;
      return kOk;
    };
    context.replace_node_subsets = [](Context* c, Registration registration, const IntArray* claimed, Delegate* by) {
      return Of(c).Replace(registration, claimed, by);
    };
    Load();
  }

  static Implementation& Of(Context* context) { return *static_cast<Implementation*>(context->impl); }

  static void Report(Context* context, const char* format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    *Of(context).error = text;
  }

  // ---- Loading ----

  void Load() {
    const Table model(&file, file.Follow(0));
    const std::vector<Table> codes = model.Tables(1), subgraphs = model.Tables(2), buffers = model.Tables(4);
    if (subgraphs.empty()) throw Refused("no subgraph");
    const Table& graph = subgraphs[0];
    for (const Table& tensor : graph.Tables(0)) AddTensor(tensor, buffers);
    context.tensors = tensors.data();
    context.tensors_size = tensors.size();
    inputs = CheckIndices(graph.Ints(1), false);
    outputs = CheckIndices(graph.Ints(2), false);
    for (const Table& op : graph.Tables(3)) AddNode(op, codes);
    for (size_t i = 0; i < nodes.size(); ++i) plan.push_back(static_cast<int32_t>(i));
  }

  void AddTensor(const Table& table, const std::vector<Table>& buffers) {
    const auto code = static_cast<size_t>(table.Scalar<int8_t>(1, 0));
    if (code >= std::size(kTypes) || code == 5) throw Refused("a tensor of another type");
    const std::vector<int32_t> shape = table.Ints(0);
    Tensor tensor{};
    HostTensor own;
    own.name = table.Text(3);
    own.dims.reset(tensor.dims = MakeIntArray(shape));
    tensor.type = kTypes[code].type;
    const int64_t bytes = BytesOf(tensor.type, shape);
    if (bytes < 0) throw Refused("a tensor's shape");
    Quantize(table.Child(4), &tensor, &own);
    const auto buffer = table.Scalar<uint32_t>(2, 0);
    if (buffer >= buffers.size()) throw Refused("a tensor's buffer");
    const Span data = buffer == 0 ? Span{} : buffers[buffer].Vector(0, 1);
    if (data.count > 0) {
      if (static_cast<int64_t>(data.count) != bytes) throw Refused("a buffer does not fit its tensor");
      own.memory.reset(std::malloc(data.count + 4));
      tensor.data = static_cast<unsigned char*>(own.memory.get()) + 4;
      std::memcpy(tensor.data, file.At(data.at), data.count);
      tensor.bytes = data.count;
      tensor.allocation_type = kMmapRo;
    } else {
      tensor.bytes = static_cast<size_t>(bytes);
      tensor.allocation_type = kArenaRw;
    }
    tensors.push_back(tensor);  // its name is set once `owned` has stopped moving
    owned.push_back(std::move(own));
  }

  static void Quantize(const Table& table, Tensor* tensor, HostTensor* own) {
    if (!table) return;
    const Span scales = table.Vector(2, 4), zero_points = table.Vector(3, 8);
    if (scales.count == 0) return;
    if (zero_points.count != scales.count && zero_points.count != 1) throw Refused("a tensor's quantization");
    tensor->quantization_type = kAffineQuantization;
    auto* const floats = static_cast<FloatArray*>(std::malloc(sizeof(int32_t) * (scales.count + 1)));
    own->scales.reset(floats);
    floats->size = static_cast<int32_t>(scales.count);
    std::vector<int32_t> zeros;
    for (size_t i = 0; i < scales.count; ++i) {
      floats->data[i] = table.file().Read<float>(scales.at + 4 * i);
      const size_t at = zero_points.at + 8 * (zero_points.count == 1 ? 0 : i);
      zeros.push_back(static_cast<int32_t>(table.file().Read<int64_t>(at)));
    }
    own->zero_points.reset(MakeIntArray(zeros));
    own->quantization = std::make_unique<AffineQuantization>(
        AffineQuantization{floats, static_cast<IntArray*>(own->zero_points.get()), table.Scalar<int32_t>(6, 0)});
    tensor->quantization = own->quantization.get();
    if (scales.count != 1) return;
    tensor->scale = table.file().Read<float>(scales.at);
    tensor->zero_point = static_cast<int32_t>(table.file().Read<int64_t>(zero_points.at));
  }

  std::vector<int32_t> CheckIndices(std::vector<int32_t> indices, bool may_be_absent) const {
    for (const int32_t index : indices) {
      if (index == kOptionalTensor && may_be_absent) continue;
      if (index < 0 || static_cast<size_t>(index) >= tensors.size()) throw Refused("a tensor's index");
    }
    return indices;
  }

  void AddNode(const Table& op, const std::vector<Table>& codes) {
    const auto index = op.Scalar<uint32_t>(0, 0);
    if (index >= codes.size()) throw Refused("an operator's code");
    auto node = std::make_unique<HostNode>();
    node->context = &context;
    node->Connect(CheckIndices(op.Ints(1), true), CheckIndices(op.Ints(2), true));
    for (const int32_t output : ItemsOf(node->node.outputs)) {
      const std::vector<int32_t> in = ItemsOf(node->node.inputs);
      if (output >= 0 && std::count(in.begin(), in.end(), output) > 0) throw Refused("an operator reads its output");
    }
    const int builtin = std::max<int>(codes[index].Scalar<int8_t>(0, 0), codes[index].Scalar<int32_t>(3, 0));
    node->registration.builtin_code = builtin;
    if (builtin == kCustom) {
      node->custom_name = codes[index].Text(1);
      node->registration.custom_name = node->custom_name.c_str();
      const Span options = op.Vector(5, 1);
      if (options.count > 0) {
        node->custom_data.reset(std::malloc(options.count));
        std::memcpy(node->custom_data.get(), file.At(options.at), options.count);
        node->node.custom_initial_data = node->custom_data.get();
        node->node.custom_initial_data_size = static_cast<int>(options.count);
      }
    } else {
      ReadOptions(op.Child(4), builtin, node.get());
    }
    nodes.push_back(std::move(node));
  }

  static void ReadOptions(const Table& options, int builtin, HostNode* node) {
    for (const OptionRow& row : OptionRows()) {
      if (row.builtin != builtin) continue;
      std::vector<int32_t> values;
      for (const auto& [slot, bytes] : row.slots) {
        const int32_t otherwise = builtin == 3 && slot >= 4 ? 1 : 0;  // CONV_2D's dilations
        const int32_t value = !options     ? otherwise
                              : bytes == 1 ? options.Scalar<int8_t>(slot, 0)
                                           : options.Scalar<int32_t>(slot, otherwise);
        values.push_back(value);
      }
      if (builtin == 3 || builtin == 17) values[0] += 1;  // the C interface counts paddings from 1
      values.resize(8);                                   // room for fields that later structs may append
      node->builtin_data.reset(std::malloc(values.size() * sizeof(int32_t)));
      std::memcpy(node->builtin_data.get(), values.data(), values.size() * sizeof(int32_t));
      node->node.builtin_data = node->builtin_data.get();
    }
  }

  // ---- The context ----

  Status GetPlan(IntArray** out) {
    plan_array.reset(*out = MakeIntArray(plan));
    return kOk;
  }

  Status Resize(Tensor* tensor, IntArray* shape) {
    Block owner(shape);
    const auto index = static_cast<size_t>(tensor - tensors.data());
    const int64_t bytes = BytesOf(tensor->type, ItemsOf(shape));
    if (index >= tensors.size() || tensor->allocation_type != kArenaRw || bytes < 0) return kError;
    owned[index].dims = std::move(owner);
    tensor->dims = shape;
    tensor->bytes = static_cast<size_t>(bytes);
    tensor->data = nullptr;
    return kOk;
  }

  // By the real interpreter's rule, subsets of claimed nodes and of others alternate, each as large as the order of
  // data allows.
  Status Replace(const Registration& registration, const IntArray* claimed_nodes, Delegate* delegate) {
    const std::vector<int32_t> listed = ItemsOf(claimed_nodes);
    const std::set<int32_t> claimed(listed.begin(), listed.end());
    claimed_count += static_cast<int>(claimed.size());
    for (const int32_t node : listed) {
      if (std::count(plan.begin(), plan.end(), node) == 0) throw std::logic_error("a claimed node is not in the plan");
    }
    constexpr int kNotReady = -1, kAlways = -2;
    std::vector<int> tensor_subset(tensors.size(), kAlways);
    for (const int32_t index : plan) {
      for (const int32_t output : Outputs(index)) {
        if (output >= 0) tensor_subset[static_cast<size_t>(output)] = kNotReady;
      }
    }
    std::map<int32_t, int> node_subset;
    std::vector<std::vector<int32_t>> subsets;
    std::vector<bool> is_claimed;
    for (bool any = true; any;) {
      any = false;
      const int current = static_cast<int>(subsets.size());
      std::vector<int32_t> subset;
      bool type = false;
      for (bool changed = true; changed;) {
        changed = false;
        for (const int32_t index : plan) {
          if (node_subset.count(index) != 0) continue;
          bool ready = true;
          for (const int32_t input : Inputs(index)) {
            ready = ready && (input < 0 || tensor_subset[static_cast<size_t>(input)] != kNotReady);
          }
          const bool mine = claimed.count(index) != 0;
          if (!ready || (!subset.empty() && mine != type)) continue;
          type = mine;
          node_subset[index] = current;
          subset.push_back(index);
          for (const int32_t output : Outputs(index)) {
            if (output >= 0) tensor_subset[static_cast<size_t>(output)] = current;
          }
          changed = any = true;
        }
      }
      if (!subset.empty()) {
        subsets.push_back(std::move(subset));
        is_claimed.push_back(type);
      }
    }
    std::vector<int32_t> next;
    for (size_t s = 0; s < subsets.size(); ++s) {
      if (!is_claimed[s]) {
        next.insert(next.end(), subsets[s].begin(), subsets[s].end());
        continue;
      }
      std::set<int32_t> in, out;
      for (const int32_t index : subsets[s]) {
        for (const int32_t input : Inputs(index)) {
          if (input >= 0 && tensor_subset[static_cast<size_t>(input)] != static_cast<int>(s)) in.insert(input);
        }
      }
      const auto leaves = [&](int32_t tensor) {
        if (std::count(outputs.begin(), outputs.end(), tensor) > 0) return true;
        for (const int32_t index : plan) {
          const auto found = node_subset.find(index);
          const std::vector<int32_t> needs = Inputs(index);
          if ((found == node_subset.end() || found->second != static_cast<int>(s)) &&
              std::count(needs.begin(), needs.end(), tensor) > 0) {
            return true;
          }
        }
        return false;
      };
      for (const int32_t index : subsets[s]) {
        for (const int32_t output : Outputs(index)) {
          if (output >= 0 && leaves(output)) out.insert(output);
        }
      }
      next.push_back(
          AddDelegateNode(registration, delegate, subsets[s], {in.begin(), in.end()}, {out.begin(), out.end()}));
    }
    plan = std::move(next);
    return kOk;
  }

  int32_t AddDelegateNode(const Registration& registration, Delegate* delegate, const std::vector<int32_t>& replaced,
                          const std::vector<int32_t>& in, const std::vector<int32_t>& out) {
    auto node = std::make_unique<HostNode>();
    node->context = &context;
    node->is_delegate = true;
    node->registration = registration;
    node->Connect(in, out);
    node->node.delegate = delegate;
    node->nodes_to_replace.reset(MakeIntArray(replaced));
    node->params.reset(std::malloc(sizeof(DelegateParams)));
    auto* const params = static_cast<DelegateParams*>(node->params.get());
    *params = {delegate, static_cast<IntArray*>(node->nodes_to_replace.get()), node->node.inputs, node->node.outputs};
    node->node.builtin_data = params;
    node->node.user_data = registration.init(&context, reinterpret_cast<const char*>(params), 0);
    nodes.push_back(std::move(node));
    return static_cast<int32_t>(nodes.size() - 1);
  }

  std::vector<int32_t> Inputs(int32_t node) const { return ItemsOf(nodes[static_cast<size_t>(node)]->node.inputs); }
  std::vector<int32_t> Outputs(int32_t node) const { return ItemsOf(nodes[static_cast<size_t>(node)]->node.outputs); }

  // ---- Running ----

  bool Allocate() {
    for (const int32_t index : plan) {
      HostNode& node = *nodes[static_cast<size_t>(index)];
      if (node.is_delegate && node.registration.prepare(&context, &node.node) != kOk) return false;
    }
    std::set<int32_t> needed(inputs.begin(), inputs.end());
    for (const int32_t index : plan) {
      for (const int32_t output : Outputs(index)) needed.insert(output);
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      Tensor& tensor = tensors[i];
      if (tensor.allocation_type != kArenaRw) continue;
      owned[i].memory.reset();
      tensor.data = nullptr;
      if (needed.count(static_cast<int32_t>(i)) == 0 || tensor.bytes == 0) continue;
      void* memory = nullptr;
      if (static_cast<int64_t>(tensor.bytes) > most_bytes || posix_memalign(&memory, 64, tensor.bytes) != 0) {
        *error = "out of memory\n";
        return false;
      }
      std::memset(memory, 0x5a, tensor.bytes);
      owned[i].memory.reset(memory);
      tensor.data = memory;
    }
    return true;
  }

  bool Invoke() {
    for (const int32_t index : plan) {
      HostNode& node = *nodes[static_cast<size_t>(index)];
      if (!node.is_delegate) {
        for (const int32_t output : Outputs(index)) {
          if (output >= 0) Fill(tensors[static_cast<size_t>(output)], static_cast<uint32_t>(output));
        }
        continue;
      }
      const HostScope plugin(false);
      if (node.registration.invoke(&context, &node.node) != kOk) return false;
    }
    return true;
  }

  static void Fill(const Tensor& tensor, uint32_t seed) {
    if (tensor.allocation_type != kArenaRw || tensor.data == nullptr) return;
    uint32_t state = seed * 2654435761u + 1;
    const auto next = [&state] {
      state ^= state << 13;
      state ^= state >> 17;
      state ^= state << 5;
      return state;
    };
    if (tensor.type == static_cast<int>(Type::kFloat32)) {
      auto* const values = static_cast<float*>(tensor.data);
      for (size_t i = 0; i < tensor.bytes / sizeof(float); ++i) {
        const uint32_t bits = next();
        // Most values are small integers, halves, or zeros of both signs; some are arbitrary bits.
        values[i] = static_cast<float>(static_cast<int32_t>(bits % 9) - 4) * ((bits >> 8) % 3 == 0 ? 0.5f : 1.0f);
        if ((bits >> 16) % 7 == 0) values[i] = -0.0f;
        if ((bits >> 20) % 64 == 0) std::memcpy(&values[i], &bits, sizeof(bits));
      }
    } else if (tensor.type == static_cast<int>(Type::kBool)) {
      auto* const values = static_cast<unsigned char*>(tensor.data);
      for (size_t i = 0; i < tensor.bytes; ++i) values[i] = next() & 1;
    } else {
      auto* const values = static_cast<unsigned char*>(tensor.data);
      for (size_t i = 0; i < tensor.bytes; ++i) values[i] = static_cast<unsigned char>(next() >> 8);
    }
  }

  const File file;
  const int64_t most_bytes;
  std::string* const error;
  Context context{};
  std::vector<Tensor> tensors;
  std::vector<HostTensor> owned;
  std::vector<int32_t> inputs, outputs, plan;
  int claimed_count = 0;
  Block plan_array;
  std::vector<std::unique_ptr<HostNode>> nodes;
};

Host::Host(const uint8_t* file, size_t size, int threads, int64_t most_bytes)
    : implementation_(std::make_unique<Implementation>(file, size, threads, most_bytes, &error_)) {
  for (size_t i = 0; i < implementation_->tensors.size(); ++i) {
    implementation_->tensors[i].name = implementation_->owned[i].name.c_str();
  }
}

Host::~Host() = default;

bool Host::Apply(Delegate* delegate) { return delegate->prepare(&implementation_->context, delegate) == kOk; }

bool Host::AllocateTensors() { return implementation_->Allocate(); }

bool Host::Invoke() { return implementation_->Invoke(); }

bool Host::ResizeBatch(int batch) {
  for (const int32_t input : implementation_->inputs) {
    Tensor* const tensor = &implementation_->tensors[static_cast<size_t>(input)];
    std::vector<int32_t> shape = ItemsOf(tensor->dims);
    if (shape.empty()) continue;
    shape[0] = batch;
    if (implementation_->Resize(tensor, MakeIntArray(shape)) != kOk) return false;
  }
  return true;
}

void Host::FillInputs(uint32_t seed) {
  for (const int32_t input : implementation_->inputs) {
    Implementation::Fill(implementation_->tensors[static_cast<size_t>(input)], seed + static_cast<uint32_t>(input));
  }
}

void Host::FillOutputs(unsigned char poison) {
  for (const int32_t index : implementation_->plan) {
    if (!implementation_->nodes[static_cast<size_t>(index)]->is_delegate) continue;
    for (const int32_t output : implementation_->Outputs(index)) {
      const Tensor& tensor = implementation_->tensors[static_cast<size_t>(output)];
      if (tensor.allocation_type == kArenaRw && tensor.data != nullptr) {
        std::memset(tensor.data, poison, tensor.bytes);
      }
    }
  }
}

std::vector<std::pair<int, std::vector<unsigned char>>> Host::Outputs() const {
  std::vector<std::pair<int, std::vector<unsigned char>>> all;
  for (const int32_t output : implementation_->outputs) {
    const Tensor& tensor = implementation_->tensors[static_cast<size_t>(output)];
    const auto* const bytes = static_cast<const unsigned char*>(tensor.data);
    all.push_back({tensor.type, {}});
    if (bytes != nullptr) all.back().second.assign(bytes, bytes + tensor.bytes);
  }
  return all;
}

std::vector<std::pair<size_t, size_t>> Host::Structure(const uint8_t* data, size_t size) {
  std::vector<std::pair<size_t, size_t>> places;
  const auto add = [&](size_t at, size_t bytes) {
    if (at > 0 && bytes > 0 && at <= size && bytes <= size - at) places.emplace_back(at, bytes);
  };
  const auto add_vector = [&](const Table& table, size_t slot, size_t element_bytes) {
    const Span span = table ? table.Vector(slot, element_bytes) : Span{};
    add(span.at, span.count * element_bytes);
  };
  try {
    const File file(data, size);
    const std::vector<Table> graphs = Table(&file, file.Follow(0)).Tables(2);
    if (graphs.empty()) return places;
    add_vector(graphs[0], 1, 4);
    add_vector(graphs[0], 2, 4);
    for (const Table& tensor : graphs[0].Tables(0)) {
      add_vector(tensor, 0, 4);
      add(tensor.Place(1), 1);
      add(tensor.Place(2), 4);
      add_vector(tensor.Child(4), 2, 4);
      add_vector(tensor.Child(4), 3, 8);
    }
    for (const Table& op : graphs[0].Tables(3)) {
      add(op.Place(0), 4);
      add_vector(op, 1, 4);
      add_vector(op, 2, 4);
      add_vector(op, 5, 1);
      add_vector(op, 5, 1);  // twice, because most faults are found here
      const Table options = op.Child(4);
      for (size_t slot = 0; options && slot < 5; ++slot) add(options.Place(slot), 1);
    }
  } catch (const Refused&) {
    // The places that were found so far will do.
  }
  return places;
}

int Host::DelegateNodes() const {
  int count = 0;
  for (const int32_t index : implementation_->plan) {
    count += implementation_->nodes[static_cast<size_t>(index)]->is_delegate ? 1 : 0;
  }
  return count;
}

int Host::ClaimedNodes() const { return implementation_->claimed_count; }

}  // namespace bnnedge::tflite
