// Fuzz target: any .tflite file in an interpreter with the delegate. It must run or be refused by a message of one
// line, stay inside its buffers, fill every output, and give the same bits again and with every kernel. ("reference" is
// left out: it alone does not look at spare bits, which a hostile file may set.)
//
// Most mutations change the bytes that decide about claims and shapes: option blobs, shapes, types, indices.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "bnnedge/conv.h"
#include "fuzz_check.h"
#include "tflite_host.h"

extern "C" void* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                               void (*report_error)(const char*));
extern "C" void tflite_plugin_destroy_delegate(void* delegate);

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using bnnedge::Found;
using bnnedge::tflite::Delegate;
using bnnedge::tflite::Host;
using bnnedge::tflite::Refused;
using Outputs = std::vector<std::pair<int, std::vector<unsigned char>>>;

constexpr int64_t kMostTensorBytes = 256 * 1024;
constexpr int kFloat32 = 1;

class Plugin {
 public:
  Plugin(std::string kernel, std::string threads) {
    char kernel_key[] = "kernel", threads_key[] = "threads";
    char* keys[] = {kernel_key, threads_key};
    char* values[] = {&kernel[0], &threads[0]};
    delegate_ = static_cast<Delegate*>(tflite_plugin_create_delegate(keys, values, 2, nullptr));
    if (delegate_ == nullptr) Found("no delegate for a known kernel");
  }
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;
  ~Plugin() { Destroy(); }
  void Destroy() {
    tflite_plugin_destroy_delegate(delegate_);
    delegate_ = nullptr;
  }
  Delegate* get() { return delegate_; }

 private:
  Delegate* delegate_;
};

// Says where two results differ; empty if they do not.
std::string Difference(const Outputs& a, const Outputs& b) {
  if (a.size() != b.size()) return "in the number of outputs";
  for (size_t i = 0; i < a.size(); ++i) {
    const auto &x = a[i].second, &y = b[i].second;
    const std::string where = "in output " + std::to_string(i);
    if (a[i].first != b[i].first || x.size() != y.size()) return where + ", its type or size";
    const size_t at = a[i].first == kFloat32 ? bnnedge::FirstDifferentFloat(x.data(), y.data(), x.size())
                                             : bnnedge::FirstDifferentByte(x.data(), y.data(), x.size());
    if (at < x.size()) return where + " from byte " + std::to_string(at);
  }
  return {};
}

bool Checked(bool succeeded, const Host& host) {
  if (!succeeded && !bnnedge::IsOneLine(host.error())) Found("a failure says '" + host.error() + "'");
  if (succeeded && !host.error().empty()) Found("a success says '" + host.error() + "'");
  return succeeded;
}

struct Results {
  int claimed_nodes = 0;
  std::vector<Outputs> runs;  // empty unless the file ran
};

Results Run(const uint8_t* data, size_t size, const char* kernel, int threads, bool delegate_first) {
  Plugin plugin(kernel, std::to_string(threads));
  Host host(data, size, threads, kMostTensorBytes);
  if (!Checked(host.Apply(plugin.get()), host)) return {};
  if (delegate_first) plugin.Destroy();  // as Python does at the end of a process
  std::vector<Outputs> all;
  const auto run = [&](uint32_t seed, unsigned char poison) {
    host.FillInputs(seed);
    host.FillOutputs(poison);
    if (!Checked(host.Invoke(), host)) return false;
    all.push_back(host.Outputs());
    return true;
  };
  if (!Checked(host.AllocateTensors(), host) || !run(1, 0x11) || !run(1, 0xee)) return {};
  const std::string difference = Difference(all[0], all[1]);
  if (!difference.empty()) Found("two runs differ " + difference + "; perhaps it is not written");
  // Files state batch 1, as a rule.
  for (const int batch : {3, 1}) {
    if (!host.ResizeBatch(batch) || !Checked(host.AllocateTensors(), host) || !run(2, 0x77)) return {};
  }
  return {host.ClaimedNodes(), all};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const uint32_t hash = bnnedge::Hash(data, size);
  const std::vector<const char*>& kernels = bnnedge::ConvKernelNames();
  const char* const kernel = kernels[hash % (kernels.size() - 1)];
  const char* const other = kernels[kernels.size() - 2];
  try {
    const auto found = Run(data, size, kernel, (hash >> 8) % 8 == 0 ? 3 : 1, (hash >> 12) % 2 == 0);
    if (found.runs.empty()) return 0;
    const auto wanted = Run(data, size, other, 1, false);
    // Not every kernel has float convolutions.
    if (found.claimed_nodes != wanted.claimed_nodes) return 0;
    for (size_t i = 0; i < std::min(found.runs.size(), wanted.runs.size()); ++i) {
      const std::string difference = Difference(found.runs[i], wanted.runs[i]);
      if (!difference.empty()) Found(std::string(kernel) + " and " + other + " differ " + difference);
    }
  } catch (const Refused&) {
    return -1;
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  if (seed % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
  const std::vector<std::pair<size_t, size_t>> places = Host::Structure(data, size);
  if (places.empty()) return LLVMFuzzerMutate(data, size, max_size);
  const auto [at, bytes] = places[(seed >> 4) % places.size()];
  LLVMFuzzerMutate(data + at, bytes, bytes);
  return size;
}
