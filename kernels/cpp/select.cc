// The only place that looks at CPU features and at BNNEDGE_KERNEL.
#include <cstdlib>
#include <cstring>

#include "bnnedge/bconv2d.h"

namespace bnnedge {
namespace {

bool Always() { return true; }

#ifdef BNNEDGE_X86_64
bool HasPopcnt() { return __builtin_cpu_supports("popcnt") != 0; }
#endif

// Fastest first. A new kernel is one line here and one in CMakeLists.txt.
constexpr BConv2dKernel kCompiled[] = {
#ifdef BNNEDGE_X86_64
    {"popcnt", BConv2dPopcnt, HasPopcnt},
#endif
    {"portable", BConv2dPortable, Always},
    {"reference", BConv2dReference, Always},
};

std::vector<BConv2dKernel> FindSupported() {
  std::vector<BConv2dKernel> supported;
  for (const BConv2dKernel& kernel : kCompiled) {
    if (kernel.supported()) supported.push_back(kernel);
  }
  return supported;
}

}  // namespace

const std::vector<BConv2dKernel>& BConv2dKernels() {
  static const std::vector<BConv2dKernel> kernels = FindSupported();
  return kernels;
}

const BConv2dKernel* SelectBConv2d(const char* name, std::string* error) {
  const bool asked = name != nullptr;
  if (!asked) name = std::getenv("BNNEDGE_KERNEL");
  const std::vector<BConv2dKernel>& kernels = BConv2dKernels();
  if (name == nullptr || *name == '\0') return &kernels.front();
  std::string known;
  for (const BConv2dKernel& kernel : kernels) {
    if (std::strcmp(kernel.name, name) == 0) return &kernel;
    known += (known.empty() ? "" : ", ") + std::string(kernel.name);
  }
  *error = (asked ? "kernel " : "BNNEDGE_KERNEL=") + std::string(name) + " does not run on this CPU; known: " + known;
  return nullptr;
}

}  // namespace bnnedge
