// The delegate claims the operators of Larq Compute Engine in a graph, and operators between them (claim.h), and runs
// them on bnnedge's kernels. So LCE files run in any TensorFlow Lite or LiteRT interpreter that loads external
// delegates.
//
// Its options are `threads` (default: the interpreter's number) and `kernel` (default: the fastest on this CPU).
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "../thread_pool.h"
#include "abi.h"
#include "bnnedge/conv.h"
#include "claim.h"
#include "op.h"
#include "partition.h"

#if defined(_WIN32)
#define BNNEDGE_PLUGIN extern "C" __declspec(dllexport)
#else
#define BNNEDGE_PLUGIN extern "C" __attribute__((visibility("default")))
#endif

namespace bnnedge::tflite {
namespace {

constexpr int kMostThreads = 256;

struct Options {
  int threads = 0;  // 0: the interpreter's number
  std::string kernel;
};

// Runs `body` and reports an exception in one line; none may leave this library.
template <typename Body>
Status Guard(Context* context, const Body& body) {
  try {
    body();
    return kOk;
  } catch (const std::bad_alloc&) {
    context->report_error(context, "bnnedge: out of memory; use a smaller batch or input\n");
  } catch (const std::exception& error) {
    context->report_error(context, "bnnedge: %s\n", error.what());
  }
  return kError;
}

class BnnedgeDelegate {
 public:
  explicit BnnedgeDelegate(Options options) : options_(std::move(options)) {
    abi_.data = this;
    abi_.prepare = Prepare;
    abi_.flags = kAllowDynamicTensors;
  }

  Delegate* abi() { return &abi_; }
  static BnnedgeDelegate* Of(Delegate* delegate) { return static_cast<BnnedgeDelegate*>(delegate->data); }

  const std::string& kernel() const { return options_.kernel; }

  // Partitions share the pool, because the interpreter may be released after the delegate.
  std::shared_ptr<ThreadPool> Pool(const Context& context) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pool_ == nullptr) {
      const int wanted = options_.threads > 0 ? options_.threads : context.recommended_num_threads;
      pool_ = std::make_shared<ThreadPool>(wanted < 1 ? 1 : wanted > kMostThreads ? kMostThreads : wanted);
    }
    return pool_;
  }

 private:
  static Status Prepare(Context* context, Delegate* delegate);

  Options options_;
  std::mutex mutex_;
  std::shared_ptr<ThreadPool> pool_;
  Delegate abi_{};
};

// The user data of a claimed node. `init` cannot report that a graph cannot be run, so it leaves the error here and
// `prepare` reports it.
struct State {
  std::unique_ptr<Partition> partition;
  std::string error;
};

void* InitPartition(Context* context, const char* buffer, size_t) {
  State* state = nullptr;
  try {
    state = new State;
    const auto& params = *reinterpret_cast<const DelegateParams*>(buffer);
    BnnedgeDelegate& delegate = *BnnedgeDelegate::Of(params.delegate);
    state->partition = std::make_unique<Partition>(context, params, delegate.Pool(*context), delegate.kernel());
  } catch (const std::exception& error) {
    try {
      if (state != nullptr) state->error = error.what();
    } catch (const std::exception&) {
      // There is no memory for the message. A state without partition and message is reported as out of memory.
    }
  }
  return state;
}

void FreePartition(Context*, void* user_data) { delete static_cast<State*>(user_data); }

Partition& PartitionOf(const Node& node) {
  State* const state = static_cast<State*>(node.user_data);
  if (state == nullptr) throw std::bad_alloc();
  if (state->partition == nullptr) throw ModelError(state->error);
  return *state->partition;
}

Status PreparePartition(Context* context, Node* node) {
  return Guard(context, [&] { PartitionOf(*node).Prepare(context); });
}

Status RunPartition(Context* context, Node* node) {
  return Guard(context, [&] { PartitionOf(*node).Run(context); });
}

Registration PartitionRegistration() {
  Registration registration{};
  registration.init = InitPartition;
  registration.free = FreePartition;
  registration.prepare = PreparePartition;
  registration.invoke = RunPartition;
  registration.builtin_code = kBuiltinDelegate;
  registration.custom_name = "BnnedgeLce";
  registration.version = 1;
  return registration;
}

Status BnnedgeDelegate::Prepare(Context* context, Delegate* delegate) {
  return Guard(context, [&] {
    // [0] is the number of the elements that follow, as in an IntArray.
    std::vector<int32_t> claimed = ClaimedNodes(context, BnnedgeDelegate::Of(delegate)->kernel());
    claimed.insert(claimed.begin(), 0);
    claimed[0] = static_cast<int32_t>(claimed.size() - 1);
    if (claimed[0] == 0) return;
    const auto* const list = reinterpret_cast<const IntArray*>(claimed.data());
    if (context->replace_node_subsets(context, PartitionRegistration(), list, delegate) != kOk) {
      throw ModelError("the interpreter refused the delegate's operators");
    }
  });
}

int ParseThreads(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < 1 || value > kMostThreads) {
    throw ModelError("option threads must be a number from 1 to " + std::to_string(kMostThreads) + ", found '" + text +
                     "'");
  }
  return static_cast<int>(value);
}

void CheckKernel(const std::string& name) {
  std::string known;
  for (const char* kernel : ConvKernelNames()) {
    if (name == kernel) return;
    known += (known.empty() ? "" : ", ") + std::string(kernel);
  }
  throw ModelError("option kernel: '" + name + "' does not run on this CPU; known: " + known);
}

Options ParseOptions(char** keys, char** values, size_t count) {
  Options options;
  for (size_t i = 0; i < count; ++i) {
    const std::string key = keys[i], value = values[i];
    if (key == "threads") {
      options.threads = ParseThreads(value);
    } else if (key == "kernel") {
      CheckKernel(value);
      options.kernel = value;
    } else {
      throw ModelError("unknown option '" + key + "'; known: threads, kernel");
    }
  }
  return options;
}

}  // namespace
}  // namespace bnnedge::tflite

BNNEDGE_PLUGIN void* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                                   void (*report_error)(const char*)) {
  try {
    auto* const delegate = new bnnedge::tflite::BnnedgeDelegate(bnnedge::tflite::ParseOptions(keys, values, count));
    return delegate->abi();
  } catch (const std::exception& error) {
    if (report_error != nullptr) report_error(error.what());
    return nullptr;
  }
}

BNNEDGE_PLUGIN void tflite_plugin_destroy_delegate(void* delegate) {
  if (delegate == nullptr) return;
  delete bnnedge::tflite::BnnedgeDelegate::Of(static_cast<bnnedge::tflite::Delegate*>(delegate));
}
