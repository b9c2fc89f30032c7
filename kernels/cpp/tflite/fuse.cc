#include "fuse.h"

#include <algorithm>
#include <unordered_map>

namespace bnnedge::tflite {
namespace {

constexpr size_t kNone = SIZE_MAX;

class Fuser {
 public:
  explicit Fuser(const std::vector<std::unique_ptr<Op>>& ops) : ops_(ops), places_(ops.size()) {
    for (size_t i = 0; i < ops.size(); ++i) {
      places_[i] = i;
      writer_[ops[i]->output] = i;
      for (const Value* input : ops[i]->inputs) {
        if (input != nullptr) readers_[input].push_back(i);
      }
    }
  }

  std::vector<Op*> Run() {
    for (size_t i = 0; i < ops_.size(); ++i) {
      ConvOp* const conv = ops_[i]->AsConv();
      if (conv == nullptr) continue;
      conv->fusion = Fusion{};
      conv->fusion.input = conv->inputs[0];
      conv->fusion.output = conv->output;
      TakePad(conv);
      if (conv->CanFuseTail()) TakeTail(i, conv);
    }
    DropPads();
    std::vector<size_t> left;
    for (size_t i = 0; i < ops_.size(); ++i) {
      if (places_[i] != kNone) left.push_back(i);
    }
    std::stable_sort(left.begin(), left.end(), [this](size_t a, size_t b) { return places_[a] < places_[b]; });
    std::vector<Op*> order;
    for (const size_t i : left) order.push_back(ops_[i].get());
    return order;
  }

 private:
  // The operators that the results of a convolution go through, up to a value that is the end of the way.
  struct Way {
    TailBuilder steps;
    Value* end;
    Value* bits = nullptr;
    bool ends_unread = false;
    size_t place;
    std::vector<size_t> taken;
  };

  const std::vector<size_t>& Readers(const Value* value) { return readers_[value]; }

  void TakePad(ConvOp* conv) {
    const auto writer = writer_.find(conv->inputs[0]);
    if (writer == writer_.end()) return;
    const Op& pad = *ops_[writer->second];
    if (pad.PadsBits() == nullptr || !conv->CanPad(pad.PadsBits())) return;
    conv->fusion.input = pad.inputs[0];
    conv->fusion.pads = pad.PadsBits();
  }

  // Drops the padding operators that all their readers fuse.
  void DropPads() {
    for (size_t i = 0; i < ops_.size(); ++i) {
      const Value* const padded = ops_[i]->output;
      if (ops_[i]->PadsBits() == nullptr || !padded->is_private) continue;
      const auto& readers = Readers(padded);
      const auto pads = [&](size_t reader) {
        const ConvOp* const conv = ops_[reader]->AsConv();
        return conv != nullptr && conv->fusion.pads != nullptr;
      };
      if (std::all_of(readers.begin(), readers.end(), pads)) places_[i] = kNone;
    }
  }

  void TakeTail(size_t index, ConvOp* conv) {
    Way way;
    way.end = conv->output;
    way.place = index;
    while (TakeNext(index, *conv, &way)) {
    }
    if (way.taken.empty()) return;
    Fusion fusion = conv->fusion;
    fusion.steps = way.steps;
    fusion.bits = way.bits;
    fusion.output = nullptr;
    const Value* const residual = way.steps.residual();
    const bool compares = way.bits != nullptr && way.ends_unread && conv->CanCompare(fusion);
    if (!compares) {
      if (residual != nullptr && residual->Elements() != way.end->Elements()) return;
      fusion.output = way.end;
    }
    conv->fusion = fusion;
    for (const size_t taken : way.taken) places_[taken] = kNone;
    places_[index] = way.place;
  }

  // Adds the operator that reads the end of the way. Returns whether the way goes on.
  bool TakeNext(size_t index, const ConvOp& conv, Way* way) {
    Value* const y = way->end;
    size_t next = kNone;
    bool must_stay = !y->is_private;
    for (const size_t reader : Readers(y)) {
      if (way->bits == nullptr && conv.CanWriteBits() && TakeSigns(reader, way)) continue;
      must_stay |= next != kNone;
      next = reader;
    }
    way->ends_unread = !must_stay && next == kNone;
    if (must_stay || next == kNone) return false;
    const Op& op = *ops_[next];
    TailBuilder steps = way->steps;
    if (!op.JoinTail(*y, &steps)) return false;
    if (steps.residual() != way->steps.residual()) {
      const auto writer = writer_.find(steps.residual());
      if (writer != writer_.end()) {
        // The other summand comes from a later convolution, which can add these results to its own without waiting.
        const ConvOp* const other = ops_[writer->second]->AsConv();
        if (writer->second > index && other != nullptr && other->CanFuseTail()) return false;
        way->place = next;
      }
    }
    way->steps = steps;
    way->end = op.output;
    way->taken.push_back(next);
    return true;
  }

  bool TakeSigns(size_t reader, Way* way) {
    const Op& op = *ops_[reader];
    if (op.PacksFloatSigns()) {
      if (!way->steps.TakeSigns()) return false;
      way->bits = op.output;
      way->taken.push_back(reader);
      return true;
    }
    const auto& after = Readers(op.output);
    TailBuilder shift;
    if (!op.output->is_private || after.size() != 1 || !ops_[after[0]]->PacksFloatSigns() ||
        !op.JoinTail(*way->end, &shift) || !shift.IsShift() || !way->steps.TakeSigns(&shift)) {
      return false;
    }
    way->bits = ops_[after[0]]->output;
    way->taken.insert(way->taken.end(), {reader, after[0]});
    return true;
  }

  const std::vector<std::unique_ptr<Op>>& ops_;
  std::vector<size_t> places_;  // by operator; kNone: it is fused into another
  std::unordered_map<const Value*, size_t> writer_;
  std::unordered_map<const Value*, std::vector<size_t>> readers_;
};

}  // namespace

bool TailBuilder::Advance(Step step) {
  if (tail_.writes_bits || step <= last_) return false;
  last_ = step;
  return true;
}

bool TailBuilder::AddResidual(const Value& value) {
  if (!Advance(kResidual)) return false;
  tail_.adds_residual = true;
  residual_ = &value;
  return true;
}

bool TailBuilder::Multiply(const Value& slope) {
  if (!Advance(kSlope)) return false;
  tail_.slope.assign(slope.As<const float>(), slope.As<const float>() + slope.Elements());
  return true;
}

bool TailBuilder::Shift(const Value& offset, float factor) {
  if (!Advance(kOffset)) return false;
  tail_.offset.assign(offset.As<const float>(), offset.As<const float>() + offset.Elements());
  for (float& value : tail_.offset) value *= factor;
  return true;
}

bool TailBuilder::Clip(float low, float high) {
  if (tail_.writes_bits && (!tail_.limit.empty() || !(low < 0.0f) || !(high >= 0.0f))) return false;
  // A clip of a clip is one clip.
  tail_.low = std::min(std::max(tail_.low, low), high);
  tail_.high = std::min(std::max(tail_.high, low), high);
  last_ = kClip;
  return true;
}

bool TailBuilder::TakeSigns(const TailBuilder* shift) {
  if (tail_.writes_bits) return false;
  if (shift != nullptr) {
    tail_.limit = shift->tail_.offset;
    for (float& value : tail_.limit) value = -value;
  }
  tail_.writes_bits = true;
  return true;
}

std::vector<Op*> Fuse(const std::vector<std::unique_ptr<Op>>& ops) { return Fuser(ops).Run(); }

}  // namespace bnnedge::tflite
