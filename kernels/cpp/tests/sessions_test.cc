// Runs sessions of both plug-ins in several threads. All of them give the same bits as one thread alone, also while
// batches change, and no inference allocates but the first of a session or of a size.
//   sessions_test FILE.tflite...     and the nodes below
// A build with -fsanitize=thread finds data races instead, and counts no allocations.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../thread_pool.h"
#include "bnnedge/layout.h"
#include "host_scope.h"
#include "ort_host.h"
#include "tflite_host.h"

extern "C" void* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                               void (*report_error)(const char*));
extern "C" void tflite_plugin_destroy_delegate(void* delegate);

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BNNEDGE_COUNTS_ALLOCATIONS 0
#endif
#endif
#if defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define BNNEDGE_COUNTS_ALLOCATIONS 0
#endif
#ifndef BNNEDGE_COUNTS_ALLOCATIONS
#define BNNEDGE_COUNTS_ALLOCATIONS 1
#endif

namespace {

// The allocations of plug-ins in all threads.
std::atomic<int64_t> allocations{0};

}  // namespace

#if BNNEDGE_COUNTS_ALLOCATIONS
// In front of the C library's, for everything in the process: operator new comes here too.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

static void Count() {
  if (!bnnedge::in_host) allocations.fetch_add(1, std::memory_order_relaxed);
}

void* malloc(size_t bytes) {
  Count();
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  Count();
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) {
  Count();
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  Count();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  *memory = memalign(alignment, bytes);
  return 0;
}
}
#endif

namespace {

using bnnedge::HostScope;
using bnnedge::Parallel;
using bnnedge::tflite::Delegate;
using bnnedge::tflite::Host;

constexpr int kThreads = 4;
constexpr int kRuns = 20;
constexpr int64_t kMostBytes = int64_t{64} << 20;

std::atomic<int> failures{0};

void Fail(const std::string& what) {
  if (++failures <= 20) std::fprintf(stderr, "FAIL %s\n", what.c_str());
}

void Check(bool holds, const std::string& what) {
  if (!holds) Fail(what);
}

// All threads wait for the last one, any number of times.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++round_;
      all_.notify_all();
      return;
    }
    all_.wait(lock, [&] { return round != round_; });
  }

 private:
  const int count_;
  std::mutex mutex_;
  std::condition_variable all_;
  int waiting_ = 0;
  int64_t round_ = 0;
};

void InThreads(const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&work, i] {
      const HostScope host;
      work(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Calls `run` kRuns times in each of the threads that meet at the barrier, and nothing else.
void CheckAllocations(const std::string& name, Barrier* barrier, const std::function<void()>& run) {
  barrier->Wait();
  const int64_t before = allocations;
  for (int i = 0; i < kRuns; ++i) run();
  barrier->Wait();
  const int64_t count = allocations - before;
  Check(count == 0, name + ": " + std::to_string(count) + " allocations in inferences after the first");
  barrier->Wait();
}

// ---- The delegate ----

using Bytes = std::vector<unsigned char>;

Bytes ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

Delegate* MakeDelegate(const std::string& threads) {
  std::string key = "threads", value = threads;
  char *keys[] = {&key[0]}, *values[] = {&value[0]};
  return static_cast<Delegate*>(tflite_plugin_create_delegate(keys, values, 1, nullptr));
}

class Session {
 public:
  Session(const Bytes& file, Delegate* delegate) : host_(file.data(), file.size(), kThreads, kMostBytes) {
    Check(host_.Apply(delegate) && host_.DelegateNodes() > 0 && host_.AllocateTensors(), host_.error());
  }

  void Resize(int batch) { Check(host_.ResizeBatch(batch) && host_.AllocateTensors(), host_.error()); }

  void Run(uint32_t seed) {
    host_.FillInputs(seed);
    host_.FillOutputs(0x99);
    Check(host_.Invoke(), host_.error());
  }
  auto Outputs() const { return host_.Outputs(); }

 private:
  Host host_;
};

// The outputs of one thread alone for batch `batch`.
auto Alone(const Bytes& file, int batch, uint32_t seed) {
  Delegate* const delegate = MakeDelegate("1");
  Session session(file, delegate);
  session.Resize(batch);
  session.Run(seed);
  const auto outputs = session.Outputs();
  tflite_plugin_destroy_delegate(delegate);
  return outputs;
}

// `shares`: all sessions have the threads of one delegate.
void TestDelegate(const std::string& name, const Bytes& file, bool shares) {
  constexpr int kBatches[] = {1, 32};  // the larger one makes work for several threads out of everything
  const decltype(Alone(file, 1, 0)) wanted[] = {Alone(file, kBatches[0], 7), Alone(file, kBatches[1], 7)};
  Delegate* const shared = MakeDelegate(std::to_string(kThreads));
  Barrier barrier(kThreads);
  InThreads([&](int thread) {
    Delegate* const own = shares ? nullptr : MakeDelegate(std::to_string(kThreads));
    {
      Session session(file, shares ? shared : own);
      for (int i = 0; i < kRuns; ++i) {
        const int which = (i / 4 + thread) % 2;  // threads are at different sizes
        if (i % 4 == 0) session.Resize(kBatches[which]);
        session.Run(7);
        Check(session.Outputs() == wanted[which], name + ": another result in a thread");
      }
      CheckAllocations(name, &barrier, [&] { session.Run(7); });
    }
    if (own != nullptr) tflite_plugin_destroy_delegate(own);
  });
  tflite_plugin_destroy_delegate(shared);
}

// ---- The operators ----

using bnnedge::ort::HostAttribute;
using bnnedge::ort::HostAttributeType;
using bnnedge::ort::HostKernel;
using bnnedge::ort::HostNode;
using bnnedge::ort::HostTensor;

uint32_t Random() {
  static uint32_t state = 2463534242u;
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

template <typename T, typename Make>
HostTensor MakeTensor(int type, const std::vector<int64_t>& shape, const Make& make) {
  HostTensor tensor;
  tensor.type = type;
  tensor.shape = shape;
  const int64_t bytes = tensor.Bytes(kMostBytes);
  tensor.Allocate(bytes);
  auto* const values = static_cast<T*>(tensor.data.get());
  for (int64_t i = 0; i < bytes / static_cast<int64_t>(sizeof(T)); ++i) values[i] = static_cast<T>(make());
  return tensor;
}

float RandomFloat() { return static_cast<float>(static_cast<int>(Random() % 9) - 4); }

HostTensor Images(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return MakeTensor<float>(bnnedge::ort::kFloat, {batch, channels, height, width}, RandomFloat);
}

struct NodeCase {
  const char* op;
  int64_t channels, group, filters;
};

HostNode MakeNode(const NodeCase& c) {
  HostNode node;
  node.name = c.op;
  const auto add = [&](const char* name, HostAttributeType type, const std::vector<int64_t>& values) {
    HostAttribute attribute;
    attribute.name = name;
    attribute.type = type;
    attribute.ints = values;
    node.attributes.push_back(attribute);
  };
  add("channels", HostAttributeType::kInts, {c.channels / c.group});
  add("group", HostAttributeType::kInt, {c.group});
  add("pads", HostAttributeType::kInts, {1, 1, 1, 1});
  add("strides", HostAttributeType::kInts, {1, 2});
  node.inputs.push_back(Images(2, c.channels, 9, 8));
  node.inputs[0].is_constant = false;
  const int64_t bytes = 4 * bnnedge::WordsFor(c.channels / c.group);
  node.inputs.push_back(MakeTensor<uint8_t>(bnnedge::ort::kUint8, {c.filters, 3, 3, bytes}, Random));
  if (std::strcmp(c.op, "BinaryConv2d") == 0) {
    for (int i = 0; i < 2; ++i) {
      node.inputs.push_back(MakeTensor<float>(bnnedge::ort::kFloat, {c.filters}, RandomFloat));
    }
  } else {
    const auto threshold = [] { return static_cast<int32_t>(Random() % 41) - 20; };
    node.inputs.push_back(MakeTensor<int32_t>(bnnedge::ort::kInt32, {c.filters}, threshold));
  }
  return node;
}

// An int8 stem. The numbers are small, so that codes are spread, and the image is large enough for several pieces: a
// run of a single piece meets no other.
HostNode MakeStemNode() {
  HostNode node;
  node.name = "stem";
  const auto add = [&](const char* name, const std::vector<int64_t>& values) {
    HostAttribute attribute;
    attribute.name = name;
    attribute.type = HostAttributeType::kInts;
    attribute.ints = values;
    node.attributes.push_back(attribute);
  };
  add("pads", {1, 1, 1, 1});
  add("pool_shape", {3, 3});
  add("pool_strides", {2, 2});
  add("pool_pads", {1, 1, 1, 1});
  constexpr int64_t kFilters = 33;
  const auto number = [](float value) {
    return MakeTensor<float>(bnnedge::ort::kFloat, {}, [value] { return value; });
  };
  const auto zero_point = [](int value) {
    return MakeTensor<uint8_t>(bnnedge::ort::kUint8, {}, [value] { return value; });
  };
  const auto small = [] { return static_cast<int32_t>(Random() % 41) - 20; };
  node.inputs.push_back(Images(2, 3, 48, 47));
  node.inputs[0].is_constant = false;
  node.inputs.push_back(number(0.25f));
  node.inputs.push_back(zero_point(120));
  node.inputs.push_back(MakeTensor<int8_t>(bnnedge::ort::kInt8, {kFilters, 3, 3, 3}, small));
  node.inputs.push_back(MakeTensor<float>(bnnedge::ort::kFloat, {kFilters}, [] { return 0.125f; }));
  node.inputs.push_back(number(0.5f));
  node.inputs.push_back(zero_point(0));
  node.inputs.push_back(MakeTensor<int32_t>(bnnedge::ort::kInt32, {kFilters}, small));
  for (int i = 0; i < 2; ++i) node.inputs.push_back(MakeTensor<float>(bnnedge::ort::kFloat, {kFilters}, RandomFloat));
  return node;
}

// Parallel work in which each run meets all the others once, so that as many are under way as there can be.
struct Meeting {
  Parallel inner;
  Barrier* barrier;
};
thread_local bool meets = false;

void RunAfterMeeting(void* host, int64_t count, void (*piece)(void* context, int64_t i), void* context) {
  const Meeting& meeting = *static_cast<const Meeting*>(host);
  if (meets) {
    meets = false;
    meeting.barrier->Wait();
  }
  meeting.inner.run(meeting.inner.host, count, piece, context);
}

bool SameBytes(const HostTensor& a, const HostTensor& b) {
  return a.shape == b.shape && std::memcmp(a.data.get(), b.data.get(), static_cast<size_t>(a.Bytes(kMostBytes))) == 0;
}

void TestOperator(const std::string& op_name, const HostNode& node, int64_t channels) {
  const std::string name = op_name + " of " + std::to_string(channels) + " channels";
  const bnnedge::ort::CustomOp* op = nullptr;
  for (const auto* each : bnnedge::ort::RegisteredOperators()) {
    if (op_name == each->get_name(each)) op = each;
  }
  if (op == nullptr) return Fail(name + " is not registered");
  bnnedge::ThreadPool pool(kThreads);
  Barrier barrier(kThreads);
  Meeting meeting{pool.AsParallel(), &barrier};
  const Parallel parallel{RunAfterMeeting, &meeting, kThreads};
  const HostKernel kernel(op, node, kMostBytes, &parallel);
  if (!kernel.created()) return Fail(name + ": " + kernel.error());

  std::vector<HostTensor> inputs[] = {node.inputs, node.inputs};
  const std::vector<int64_t>& shape = node.inputs[0].shape;
  inputs[1][0] = Images(3, channels, shape[2], shape[3]);
  std::vector<HostTensor> wanted[2];
  for (int i = 0; i < 2; ++i) {
    const HostKernel alone(op, node, kMostBytes);
    const std::string error = alone.Compute(inputs[i], 0, &wanted[i]);
    Check(error.empty(), name + ": " + error);
  }
  InThreads([&](int thread) {
    std::vector<HostTensor> outputs;
    const auto run = [&](int which) {
      const std::string error = kernel.Compute(inputs[which], 0x99, &outputs);
      Check(error.empty() && SameBytes(outputs[0], wanted[which][0]), name + ": another result in a thread " + error);
    };
    for (int i = 0; i < kRuns; ++i) run((i / 4 + thread) % 2);
    barrier.Wait();
    meets = true;
    run(0);
    CheckAllocations(name, &barrier, [&] { run(0); });
  });
}

}  // namespace

int main(int count, char** arguments) {
  const HostScope host;
  for (int i = 1; i < count; ++i) {
    const Bytes file = ReadFile(arguments[i]);
    for (const bool shares : {true, false}) TestDelegate(arguments[i], file, shares);
  }
  for (const NodeCase& c : {NodeCase{"BinaryConv2d", 33, 1, 40}, NodeCase{"BinaryConv2dThreshold", 64, 1, 33},
                            NodeCase{"BinaryConv2d", 64, 2, 6}, NodeCase{"BinaryConv2dThreshold", 66, 2, 66}}) {
    TestOperator(c.op, MakeNode(c), c.channels);
  }
  TestOperator("QuantizedConv2dMaxPoolSign", MakeStemNode(), 3);
  std::printf("%s, %d failures\n", BNNEDGE_COUNTS_ALLOCATIONS ? "allocations counted" : "allocations not counted",
              failures.load());
  return failures == 0 ? 0 : 1;
}
