// Neighbouring operators that run as one node of the interpreter.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../thread_pool.h"
#include "abi.h"
#include "bnnedge/aligned.h"
#include "op.h"
#include "stem_chain.h"

namespace bnnedge::tflite {

// The interpreter knows the tensors that enter and leave. Tensors between the operators are *private*: the interpreter
// gives them no memory, so that the partition does, and the shapes that the file states for them are not relied on.
class Partition {
 public:
  // Throws ModelError for a graph that cannot be run.
  Partition(Context* context, const DelegateParams& params, std::shared_ptr<ThreadPool> pool, std::string kernel);

  // Computes all shapes, resizes the outputs of the interpreter, and allocates all memory that inference needs.
  void Prepare(Context* context);
  void Run(Context* context);

 private:
  enum class Role { kEntering, kLeaving, kPrivate };

  struct Slot {
    Value value;
    Role role = Role::kPrivate;
    bool is_written = false;  // by one of the operators added so far
    // A private tensor that a step writes needs a place in memory_. Tensors that are not needed in the same steps share
    // a place; so does a tensor that replaces another one element by element.
    bool needs_place = false;
    Slot* in_place_of = nullptr;
    int64_t offset = 0, bytes = 0;
    size_t first_step = 0, last_step = 0;
  };

  // One operator, or several pixelwise ones that run slice by slice.
  struct Step {
    std::vector<const PixelwiseOp*> pixelwise;  // empty: `op` alone
    const Op* op;
    int64_t pixels, pixel_bytes;
  };

  void AddNode(Context* context, int index);
  void AddStem(Context* context, const StemChain& chain);
  Value* Input(Context* context, int tensor);
  Value* Output(Context* context, int tensor);
  Slot& FindOrAdd(Context* context, int tensor);
  static void Refresh(Context* context, Slot* slot);
  static void ResizeOutput(Context* context, const Slot& slot);
  void MakeSteps();
  void NoteLifetimes();
  int64_t PlacePrivate();
  void Allocate();
  static void RunStep(const Step& step, const RunContext& run);

  std::shared_ptr<ThreadPool> pool_;
  std::string kernel_;
  std::unordered_map<int, std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> order_;  // in the order in which operators name them
  std::vector<bool> leaves_;  // by tensor: whether it leaves the partition
  std::vector<std::unique_ptr<Op>> ops_;
  std::vector<Op*> running_;  // those that are not fused into others, in order
  std::vector<Step> steps_;

  AlignedBuffer memory_;   // private tensors, then the workspace of the operator that runs
  int64_t workspace_ = 0;  // offset of the workspace
};

}  // namespace bnnedge::tflite
