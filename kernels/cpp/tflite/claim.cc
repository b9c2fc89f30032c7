#include "claim.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/pointwise_kernel.h"
#include "op.h"
#include "stem_chain.h"

namespace bnnedge::tflite {
namespace {

constexpr int kLongestRank = 8;

class Graph {
 public:
  explicit Graph(const Context* context) : context_(context) {}

  const Tensor* At(const IntArray* indices, int position) const {
    if (indices == nullptr || position >= indices->size) return nullptr;
    const int index = indices->data[position];
    return index >= 0 && static_cast<size_t>(index) < context_->tensors_size ? &context_->tensors[index] : nullptr;
  }

 private:
  const Context* context_;
};

bool Is(const Tensor* tensor, Type type) { return tensor != nullptr && tensor->type == static_cast<int>(type); }

// Whether the tensor has 4-byte elements and as many axes as the operators here support.
bool IsMap(const Tensor* tensor) {
  return (Is(tensor, Type::kFloat32) || Is(tensor, Type::kInt32)) && tensor->dims != nullptr &&
         tensor->dims->size >= 1 && tensor->dims->size <= kLongestRank;
}

bool IsFloatMap(const Tensor* tensor) { return Is(tensor, Type::kFloat32) && IsMap(tensor); }

bool IsConstant(const Tensor* tensor) {
  return tensor != nullptr && (tensor->allocation_type == kMmapRo || tensor->allocation_type == kPersistentRo) &&
         tensor->data != nullptr;
}

bool IsConstantInts(const Tensor* tensor) { return Is(tensor, Type::kInt32) && IsConstant(tensor); }

int32_t Rank(const Tensor* map) { return map->dims->size; }

bool IsConstantOf(const Tensor* tensor, size_t elements) {
  return IsConstant(tensor) && tensor->bytes == elements * sizeof(float);
}

bool IsNumber(const Tensor* tensor) {
  return IsConstantOf(tensor, 1) && !std::isnan(*static_cast<const float*>(tensor->data));
}

bool IsPerChannel(const Tensor* tensor, const Tensor& map) {
  const int32_t channels = map.dims->data[map.dims->size - 1];
  return channels > 0 && tensor->dims->data[tensor->dims->size - 1] == channels &&
         IsConstantOf(tensor, static_cast<size_t>(channels));
}

int32_t Count(const IntArray* array) { return array == nullptr ? 0 : array->size; }

bool IsSubsample(const StridedSliceParams& params, const Tensor& input, const Tensor* steps) {
  const int rank = input.dims->size, all = (1 << rank) - 1;
  if ((params.begin_mask & all) != all || (params.end_mask & all) != all) return false;
  if (params.ellipsis_mask != 0 || params.new_axis_mask != 0 || params.shrink_axis_mask != 0) return false;
  if (!IsConstantInts(steps) || steps->bytes != static_cast<size_t>(rank) * sizeof(int32_t)) return false;
  for (int axis = 0; axis < rank; ++axis) {
    if (static_cast<const int32_t*>(steps->data)[axis] < 1) return false;
  }
  return true;
}

bool IsPointwise(const Graph& graph, const Node& node) {
  const Tensor *const input = graph.At(node.inputs, 0), *const filter = graph.At(node.inputs, 1);
  const int32_t inputs = Count(node.inputs);
  if (inputs < 2 || inputs > 3 || node.builtin_data == nullptr || !IsFloatMap(input) || !IsFloatMap(filter))
    return false;
  if (Rank(input) != 4 || Rank(filter) != 4) return false;
  const int32_t* const size = filter->dims->data;
  const int32_t filters = size[0], channels = size[3];
  if (filters < 1 || size[1] != 1 || size[2] != 1 || channels < 1 || input->dims->data[3] != channels) return false;
  if (!IsConstantOf(filter, static_cast<size_t>(filters) * static_cast<size_t>(channels))) return false;
  const bool has_bias = inputs == 3 && node.inputs->data[2] != kOptionalTensor;
  const Tensor* const bias = graph.At(node.inputs, 2);
  if (has_bias && (!Is(bias, Type::kFloat32) || !IsConstantOf(bias, static_cast<size_t>(filters)))) return false;
  const auto& params = *static_cast<const ConvParams*>(node.builtin_data);
  return params.stride_height >= 1 && params.stride_width >= 1 && params.activation >= kActivationNone &&
         params.activation <= kActivationRelu6;
}

// `multiplies` says whether there is a kernel for IsPointwise.
bool IsGlue(const Graph& graph, const Node& node, int builtin_code, bool multiplies) {
  const Tensor* const input = graph.At(node.inputs, 0);
  const Tensor* const second = graph.At(node.inputs, 1);
  const Tensor* const output = graph.At(node.outputs, 0);
  const int32_t inputs = Count(node.inputs);
  if (Count(node.outputs) != 1 || !IsMap(input) || !IsMap(output) || input->type != output->type) return false;
  switch (static_cast<Builtin>(builtin_code)) {
    case Builtin::kAdd:
    case Builtin::kSub:
    case Builtin::kMul: {
      if (inputs != 2 || node.builtin_data == nullptr || !IsFloatMap(input) || !IsFloatMap(second)) return false;
      const bool is_product = static_cast<Builtin>(builtin_code) == Builtin::kMul;
      if (is_product && !IsConstant(input) && !IsConstant(second)) return false;
      const int activation = static_cast<const ArithmeticParams*>(node.builtin_data)->activation;
      return activation >= kActivationNone && activation <= kActivationRelu6;
    }
    case Builtin::kConv2d:
      return multiplies && IsPointwise(graph, node);
    case Builtin::kRelu:
    case Builtin::kReluN1To1:
    case Builtin::kRelu6:
      return inputs == 1 && IsFloatMap(input);
    case Builtin::kMaximum:
    case Builtin::kMinimum:
      return inputs == 2 && IsFloatMap(input) && IsFloatMap(second) &&
             (IsNumber(second) ? Rank(second) <= Rank(input) : IsNumber(input) && Rank(input) <= Rank(second));
    case Builtin::kPrelu:
      return inputs == 2 && IsFloatMap(input) && IsFloatMap(second) && IsPerChannel(second, *input);
    case Builtin::kPad:
      return inputs == 2 && IsConstantInts(second);
    case Builtin::kGather:
      return inputs == 2 && node.builtin_data != nullptr && IsFloatMap(input) && IsConstantInts(second) &&
             second->dims != nullptr && second->dims->size == 1 &&
             static_cast<const GatherParams*>(node.builtin_data)->batch_dims == 0;
    case Builtin::kStridedSlice:
      return inputs == 4 && node.builtin_data != nullptr &&
             IsSubsample(*static_cast<const StridedSliceParams*>(node.builtin_data), *input, graph.At(node.inputs, 3));
  }
  return false;
}

// kTable is a GATHER of constants, which glue may read.
enum class Kind { kOther, kOurs, kTable };

struct GraphNode {
  int32_t index;
  Kind kind;
  std::vector<int32_t> inputs, outputs;
};

std::vector<int32_t> Items(const IntArray* array) {
  if (Count(array) <= 0) return {};
  return {array->data, array->data + array->size};
}

bool AnyIn(const std::vector<int32_t>& items, const std::unordered_set<int32_t>& set) {
  for (const int32_t item : items) {
    if (set.count(item) != 0) return true;
  }
  return false;
}

// Counts how often tensors go from the delegate to the interpreter or back. Partitions of the delegate have odd levels,
// and operators between them have even ones.
class Levels {
 public:
  void Write(const GraphNode& entry) {
    const bool is_ours = entry.kind == Kind::kOurs;
    int level = is_ours ? 1 : 0;
    for (const int32_t input : entry.inputs) level = std::max(level, Of(input));
    if (level % 2 != (is_ours ? 1 : 0)) ++level;
    for (const int32_t output : entry.outputs) of_[output] = level;
  }

  // Whether an operator with such inputs can join the partition that writes one of them, without making it wait for
  // what reads that partition's results.
  bool Join(const std::vector<int32_t>& inputs) const {
    int highest = 0;
    for (const int32_t input : inputs) highest = std::max(highest, Of(input));
    return highest % 2 == 1;
  }

 private:
  int Of(int32_t tensor) const {
    const auto found = of_.find(tensor);
    return found == of_.end() ? 0 : found->second;
  }

  std::unordered_map<int32_t, int> of_;
};

std::vector<GraphNode> GraphNodes(Context* context, bool multiplies) {
  IntArray* plan = nullptr;
  if (context->get_execution_plan(context, &plan) != kOk) throw ModelError("the graph cannot be read");
  // The context may free the plan in its next call.
  const std::vector<int32_t> nodes = Items(plan);
  std::unordered_set<int32_t> of_stems;
  for (const StemChain& chain : FindStems(context, nodes)) of_stems.insert(chain.nodes.begin(), chain.nodes.end());
  std::vector<GraphNode> graph_nodes;
  std::unordered_set<int32_t> tables;
  Levels levels;
  const Graph graph(context);
  for (const int32_t index : nodes) {
    Node* node = nullptr;
    Registration* registration = nullptr;
    if (context->get_node_and_registration(context, index, &node, &registration) != kOk) {
      throw ModelError("node " + std::to_string(index) + " cannot be read");
    }
    GraphNode entry{index, Kind::kOther, Items(node->inputs), Items(node->outputs)};
    if (IsLceOp(registration->custom_name) || of_stems.count(index) != 0) {
      entry.kind = Kind::kOurs;
    } else if (IsGlue(graph, *node, registration->builtin_code, multiplies)) {
      const bool gathers = registration->builtin_code == static_cast<int>(Builtin::kGather);
      if (levels.Join(entry.inputs)) {
        entry.kind = Kind::kOurs;
      } else if (gathers && (IsConstant(graph.At(node->inputs, 0)) || AnyIn(entry.inputs, tables))) {
        entry.kind = Kind::kTable;
        tables.insert(entry.outputs.begin(), entry.outputs.end());
      }
    }
    // A table is computed before the first inference, so that nothing waits for it.
    if (entry.kind != Kind::kTable) levels.Write(entry);
    graph_nodes.push_back(std::move(entry));
  }
  return graph_nodes;
}

}  // namespace

std::vector<int32_t> ClaimedNodes(Context* context, const std::string& kernel) {
  std::string error;  // a wrong name in the environment is reported where a kernel is made
  const char* const selected = SelectConvKernel(kernel.empty() ? nullptr : kernel.c_str(), &error);
  const bool multiplies = selected != nullptr && FindPointwiseKernel(selected) != nullptr;
  const std::vector<GraphNode> graph_nodes = GraphNodes(context, multiplies);
  std::unordered_set<int32_t> needed;
  std::vector<int32_t> claimed;
  for (auto entry = graph_nodes.rbegin(); entry != graph_nodes.rend(); ++entry) {
    const bool serves = entry->kind == Kind::kTable && AnyIn(entry->outputs, needed);
    if (entry->kind != Kind::kOurs && !serves) continue;
    claimed.push_back(entry->index);
    needed.insert(entry->inputs.begin(), entry->inputs.end());
  }
  return {claimed.rbegin(), claimed.rend()};
}

}  // namespace bnnedge::tflite
