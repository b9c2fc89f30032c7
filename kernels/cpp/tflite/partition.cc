#include "partition.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "fuse.h"

namespace bnnedge::tflite {
namespace {

constexpr size_t kLongestName = 80;

// A name without control characters, for an error of one line.
std::string CleanName(const char* name, int index) {
  if (name == nullptr || *name == '\0') return "tensor " + std::to_string(index);
  std::string clean(name, std::min(std::strlen(name), kLongestName));
  std::replace_if(clean.begin(), clean.end(), [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return clean;
}

std::vector<int64_t> ShapeOf(const Tensor& tensor) {
  if (tensor.dims == nullptr || tensor.dims->size < 0) return {};
  return {tensor.dims->data, tensor.dims->data + tensor.dims->size};
}

bool HasShape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  return tensor.dims != nullptr && static_cast<size_t>(tensor.dims->size) == shape.size() &&
         std::equal(shape.begin(), shape.end(), tensor.dims->data);
}

int64_t Bytes(const Value& value) { return value.Elements() * ElementBytes(value.type); }

std::vector<int> Items(const IntArray* array) {
  if (array == nullptr || array->size <= 0) return {};
  return {array->data, array->data + array->size};
}

}  // namespace

Partition::Partition(Context* context, const DelegateParams& params, std::shared_ptr<ThreadPool> pool,
                     std::string kernel)
    : pool_(std::move(pool)), kernel_(std::move(kernel)), leaves_(context->tensors_size, false) {
  for (const int tensor : Items(params.output_tensors)) {
    if (tensor >= 0 && static_cast<size_t>(tensor) < leaves_.size()) leaves_[static_cast<size_t>(tensor)] = true;
  }
  const std::vector<int> nodes = Items(params.nodes_to_replace);
  std::unordered_map<int, const StemChain*> stems;  // by node
  const std::vector<StemChain> chains = FindStems(context, nodes);
  for (const StemChain& chain : chains) {
    for (const int32_t node : chain.nodes) stems[node] = &chain;
  }
  for (const int node : nodes) {
    const auto stem = stems.find(node);
    if (stem == stems.end()) {
      AddNode(context, node);
    } else if (stem->second->nodes.front() == node) {
      AddStem(context, *stem->second);
    }
  }
}

void Partition::AddStem(Context* context, const StemChain& chain) {
  const auto output = [&](int32_t tensor) { return tensor == kOptionalTensor ? nullptr : Output(context, tensor); };
  const std::vector<Value*> inputs{Input(context, chain.image), Input(context, chain.filter),
                                   Input(context, chain.bias)};
  StemValues values{output(chain.quantized), output(chain.convolved), output(chain.pooled), {}};
  for (const int32_t tensor : chain.inner) values.inner.push_back(output(tensor));
  Value* const floats = output(chain.floats);
  std::unique_ptr<Op> op = MakeStem(chain, values);
  op->inputs = inputs;
  op->output = floats != nullptr ? floats : values.pooled != nullptr ? values.pooled : values.convolved;
  ops_.push_back(std::move(op));
}

void Partition::AddNode(Context* context, int index) {
  Node* node = nullptr;
  Registration* registration = nullptr;
  if (context->get_node_and_registration(context, index, &node, &registration) != kOk) {
    throw ModelError("node " + std::to_string(index) + " cannot be read");
  }
  std::unique_ptr<Op> op;
  if (IsLceOp(registration->custom_name)) {
    const FlexMap options(node->custom_initial_data, node->custom_initial_data_size);
    try {
      op = MakeOp(registration->custom_name, options);
    } catch (const ModelError& error) {
      throw ModelError(error.what() + (" (node " + std::to_string(index) + ")"));
    }
  } else {
    op = MakeBuiltinOp(registration->builtin_code, node->builtin_data);
  }
  if (op == nullptr) throw ModelError("node " + std::to_string(index) + " is no operator of this delegate");
  // Inputs come first, so that an operator that reads its own output is found to read it before it is written.
  for (const int tensor : Items(node->inputs)) {
    op->inputs.push_back(tensor == kOptionalTensor ? nullptr : Input(context, tensor));
  }
  const std::vector<int> outputs = Items(node->outputs);
  if (outputs.size() != 1) {
    throw ModelError(std::string(op->code()) + " must have 1 output, found " + std::to_string(outputs.size()));
  }
  op->output = Output(context, outputs[0]);
  ops_.push_back(std::move(op));
}

Partition::Slot& Partition::FindOrAdd(Context* context, int tensor) {
  if (tensor < 0 || static_cast<size_t>(tensor) >= context->tensors_size) {
    throw ModelError("tensor " + std::to_string(tensor) + " does not exist");
  }
  std::unique_ptr<Slot>& slot = slots_[tensor];
  if (slot == nullptr) {
    slot = std::make_unique<Slot>();
    slot->value.index = tensor;
    Refresh(context, slot.get());
    order_.push_back(slot.get());
  }
  return *slot;
}

Value* Partition::Input(Context* context, int tensor) {
  Slot& slot = FindOrAdd(context, tensor);
  if (!slot.is_written) slot.role = Role::kEntering;
  return &slot.value;
}

Value* Partition::Output(Context* context, int tensor) {
  Slot& slot = FindOrAdd(context, tensor);
  if (slot.is_written) throw ModelError("'" + slot.value.name + "' is written twice");
  if (slot.role == Role::kEntering) throw ModelError("'" + slot.value.name + "' is read before it is written");
  if (slot.value.is_constant) throw ModelError("'" + slot.value.name + "' is a constant and cannot be written");
  slot.is_written = true;
  slot.role = leaves_[static_cast<size_t>(tensor)] ? Role::kLeaving : Role::kPrivate;
  slot.value.is_private = slot.role == Role::kPrivate;
  return &slot.value;
}

void Partition::Refresh(Context* context, Slot* slot) {
  Value& value = slot->value;
  const Tensor& tensor = context->tensors[value.index];
  value.name = CleanName(tensor.name, value.index);
  value.type = tensor.type;
  value.shape = ShapeOf(tensor);
  value.scale = tensor.scale;
  value.zero_point = tensor.zero_point;
  value.has_quantization = tensor.quantization_type == kAffineQuantization;
  value.is_constant =
      (tensor.allocation_type == kMmapRo || tensor.allocation_type == kPersistentRo) && tensor.data != nullptr;
  value.data = value.is_constant ? tensor.data : nullptr;
  if (!value.is_constant) return;
  const int64_t bytes = value.shape.empty() ? 0 : Bytes(value);
  if (bytes != static_cast<int64_t>(tensor.bytes)) {
    throw ModelError("constant '" + value.name + "': " + TypeName(value.type) + " " + ShapeText(value.shape) +
                     " takes " + std::to_string(bytes) + " bytes, found " + std::to_string(tensor.bytes));
  }
}

void Partition::ResizeOutput(Context* context, const Slot& slot) {
  const Value& value = slot.value;
  Tensor* const tensor = &context->tensors[value.index];
  if (HasShape(*tensor, value.shape)) return;
  const size_t rank = value.shape.size();
  auto* const dims = static_cast<IntArray*>(std::malloc(sizeof(int32_t) * (rank + 1)));
  if (dims == nullptr) throw std::bad_alloc();
  dims->size = static_cast<int32_t>(rank);
  // All axes fit int32: they come from one, or are smaller than an axis that does.
  std::transform(value.shape.begin(), value.shape.end(), dims->data, [](int64_t n) { return static_cast<int32_t>(n); });
  if (context->resize_tensor(context, tensor, dims) != kOk) {
    throw ModelError("'" + value.name + "' cannot be resized to " + ShapeText(value.shape));
  }
}

void Partition::Prepare(Context* context) {
  for (Slot* slot : order_) {
    if (slot->role == Role::kEntering) Refresh(context, slot);
  }
  for (const std::unique_ptr<Op>& op : ops_) {
    op->Prepare();
    op->output->Elements();
  }
  running_ = Fuse(ops_);
  for (Op* op : running_) op->Build(kernel_.empty() ? nullptr : kernel_.c_str());
  for (const Slot* slot : order_) {
    if (slot->role == Role::kLeaving) ResizeOutput(context, *slot);
  }
  Allocate();
}

// Neighbouring pixelwise operators become one step, so that slices of pixels stay in the cache from one to the next.
void Partition::MakeSteps() {
  steps_.clear();
  for (const Op* op : running_) {
    if (!op->IsPixelwise()) {
      steps_.push_back({{}, op, 0, 0});
      continue;
    }
    const auto* const pixelwise = static_cast<const PixelwiseOp*>(op);
    const int64_t pixels = op->output->Pixels();
    if (steps_.empty() || steps_.back().pixelwise.empty() || steps_.back().pixels != pixels) {
      steps_.push_back({{}, nullptr, pixels, 0});
    }
    steps_.back().pixelwise.push_back(pixelwise);
    steps_.back().pixel_bytes += pixelwise->PixelBytes();
  }
}

void Partition::NoteLifetimes() {
  std::unordered_map<const Value*, Slot*> slots;
  for (Slot* slot : order_) {
    slots[&slot->value] = slot;
    slot->needs_place = false;
    slot->in_place_of = nullptr;
  }
  const auto note = [&](const Op& op, size_t step) {
    for (const Value* input : op.Reads()) slots[input]->last_step = step;
    for (const Value* written : op.Writes()) {
      Slot& slot = *slots[written];
      slot.first_step = slot.last_step = step;
      slot.needs_place = slot.role == Role::kPrivate && !slot.value.is_constant;
    }
  };
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (steps_[i].op != nullptr) note(*steps_[i].op, i);
    for (const Op* op : steps_[i].pixelwise) note(*op, i);
  }
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Value* const before = steps_[i].op == nullptr ? nullptr : steps_[i].op->InPlace();
    if (before == nullptr) continue;
    Slot *const from = slots[before], *const to = slots[steps_[i].op->Writes()[0]];
    if (!from->needs_place || !to->needs_place || from->last_step != i) continue;
    to->in_place_of = from->in_place_of == nullptr ? from : from->in_place_of;
    to->in_place_of->last_step = to->last_step;
  }
}

// Places private tensors, the largest first, each at the lowest offset that is free during its steps. Returns the bytes
// that all of them take.
int64_t Partition::PlacePrivate() {
  std::vector<Slot*> waiting, placed;  // `placed` in order of offsets
  for (Slot* slot : order_) {
    if (!slot->needs_place || slot->in_place_of != nullptr) continue;
    slot->bytes = Aligned(Bytes(slot->value));
    waiting.push_back(slot);
  }
  std::stable_sort(waiting.begin(), waiting.end(), [](const Slot* a, const Slot* b) { return a->bytes > b->bytes; });
  int64_t total = 0;
  for (Slot* slot : waiting) {
    slot->offset = 0;
    for (const Slot* other : placed) {
      if (other->last_step < slot->first_step || slot->last_step < other->first_step) continue;
      if (slot->offset + slot->bytes <= other->offset) break;
      slot->offset = std::max(slot->offset, other->offset + other->bytes);
    }
    const auto after = [](const Slot* a, const Slot* b) { return a->offset < b->offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), slot, after), slot);
    total = std::max(total, slot->offset + slot->bytes);
  }
  return total;
}

void Partition::Allocate() {
  MakeSteps();
  NoteLifetimes();
  workspace_ = PlacePrivate();
  int64_t workspace_bytes = 0;
  for (const Op* op : running_) workspace_bytes = std::max(workspace_bytes, op->workspace_bytes);
  unsigned char* const memory = memory_.AtLeast(workspace_ + workspace_bytes);
  for (Slot* slot : order_) {
    const Slot& place = slot->in_place_of == nullptr ? *slot : *slot->in_place_of;
    if (slot->needs_place) slot->value.data = memory + place.offset;
  }
}

void Partition::RunStep(const Step& step, const RunContext& run) {
  if (step.op != nullptr) {
    step.op->Run(run);
    return;
  }
  const int64_t slice = SliceLength(step.pixel_bytes);
  ForParts(run.parallel, step.pixels, step.pixel_bytes, [&](int64_t first, int64_t count) {
    const int64_t end = first + count;
    for (int64_t at = first; at < end; at += slice) {
      for (const PixelwiseOp* op : step.pixelwise) op->RunPixels(at, std::min(slice, end - at));
    }
  });
}

void Partition::Run(Context* context) {
  for (Slot* slot : order_) {
    Value& value = slot->value;
    if (slot->role == Role::kPrivate || (slot->role == Role::kEntering && value.is_constant)) continue;
    const Tensor& tensor = context->tensors[value.index];
    if (tensor.data == nullptr || !HasShape(tensor, value.shape) || tensor.type != value.type ||
        static_cast<int64_t>(tensor.bytes) < Bytes(value)) {
      throw ModelError("'" + value.name + "' changed since it was prepared; call allocate_tensors again");
    }
    value.data = tensor.data;
  }
  const RunContext run{memory_.get() + workspace_, pool_->AsParallel()};
  for (const Step& step : steps_) RunStep(step, run);
}

}  // namespace bnnedge::tflite
