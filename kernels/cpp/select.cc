// Which kernels this CPU runs, and which of them is taken. Nothing else looks at BNNEDGE_KERNEL.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/pack_kernel.h"
#include "bnnedge/pointwise_kernel.h"
#include "bnnedge/stem_kernel.h"
#include "cpu_features.h"

namespace bnnedge {
namespace {

constexpr char kReference[] = "reference";

bool Always() { return true; }

// The kernels that are chosen together by one name, which is that of the convolution.
struct InstructionSet {
  bool (*is_supported)();
  const ConvKernel* conv;
  const PackKernel* pack;
  const PointwiseKernel* pointwise;  // nullptr: multiplication and addition round apart
};

#ifdef BNNEDGE_NEON
bool HasSlowTables() { return !HasFastTables(); }
#endif

// The fastest come first. A new instruction set is one row here, its tables in their headers and files in
// CMakeLists.txt.
constexpr InstructionSet kInstructionSets[] = {
#ifdef BNNEDGE_X86_64
    {HasAvx512, &kConvAvx512, &kPackAvx512, &kPointwiseAvx512},
    {HasAvx2, &kConvAvx2, &kPackAvx2, &kPointwiseAvx2},
    {HasPopcnt, &kConvPopcnt, &kPackPortable, nullptr},
#endif
#ifdef BNNEDGE_NEON
    {HasFastTables, &kConvNeonTable, &kPackNeon, &kPointwiseNeon},
#endif
#ifdef BNNEDGE_NEON_DOT
    {HasDot, &kConvNeonDot, &kPackNeon, &kPointwiseNeon},
#endif
#ifdef BNNEDGE_NEON
    {Always, &kConvNeon, &kPackNeon, &kPointwiseNeon},
    {HasSlowTables, &kConvNeonTable, &kPackNeon, &kPointwiseNeon},
#endif
    {Always, &kConvPortable, &kPackPortable, nullptr},
};

// Stems have rows of their own, since they need other instructions: a CPU may have AVX-512 with VNNI and no VPOPCNTDQ.
// `like` are the convolutions above that need no fewer instructions than the stem.
struct StemInstructionSet {
  bool (*is_supported)();
  const StemKernel* stem;
  const ConvKernel* like[2];

  bool IsLike(const char* name) const {
    return std::any_of(std::begin(like), std::end(like), [name](const ConvKernel* conv) {
      return conv != nullptr && std::strcmp(conv->name, name) == 0;
    });
  }
};

constexpr StemInstructionSet kStemInstructionSets[] = {
#ifdef BNNEDGE_AMX
    {HasAmx, &kStemAmx, {&kConvAvx512}},
#endif
#ifdef BNNEDGE_X86_64
    {HasAvx512Vnni, &kStemAvx512Vnni, {&kConvAvx512}},
    {HasAvx2, &kStemAvx2, {&kConvAvx2}},
#endif
#ifdef BNNEDGE_NEON_DOT
    {HasDot, &kStemNeonDot, {&kConvNeonDot}},
#endif
#ifdef BNNEDGE_NEON
    {Always, &kStemNeon, {&kConvNeon, &kConvNeonTable}},
#endif
    {Always, &kStemPortable, {&kConvPortable}},
};

const InstructionSet* FindInstructionSet(const char* name) {
  for (const InstructionSet& set : kInstructionSets) {
    if (std::strcmp(set.conv->name, name) == 0) return &set;
  }
  return nullptr;
}

std::vector<const char*> FindSupported() {
  std::vector<const char*> names;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.is_supported()) names.push_back(set.conv->name);
  }
  names.push_back(kReference);
  return names;
}

}  // namespace

const std::vector<const char*>& ConvKernelNames() {
  static const std::vector<const char*> names = FindSupported();
  return names;
}

const char* SelectConvKernel(const char* name, std::string* error) {
  const bool asked = name != nullptr;
  if (!asked) name = std::getenv("BNNEDGE_KERNEL");
  if (name == nullptr || *name == '\0') return ConvKernelNames().front();
  std::string known;
  for (const char* supported : ConvKernelNames()) {
    if (std::strcmp(supported, name) == 0) return supported;
    known += (known.empty() ? "" : ", ") + std::string(supported);
  }
  *error = (asked ? "kernel " : "BNNEDGE_KERNEL=") + std::string(name) + " does not run on this CPU; known: " + known;
  return nullptr;
}

const ConvKernel* FindConvKernel(const char* name) {
  const InstructionSet* const found = FindInstructionSet(name);
  return found == nullptr ? nullptr : found->conv;
}

const PackKernel& FindPackKernel(const char* kernel) {
  const InstructionSet* const found = FindInstructionSet(kernel);
  return found == nullptr ? kPackPortable : *found->pack;
}

const PointwiseKernel* FindPointwiseKernel(const char* kernel) {
  const InstructionSet* const found = FindInstructionSet(kernel);
  return found == nullptr ? nullptr : found->pointwise;
}

const std::vector<const StemKernel*>& StemKernels() {
  static const std::vector<const StemKernel*> kernels = [] {
    std::vector<const StemKernel*> supported;
    for (const StemInstructionSet& set : kStemInstructionSets) {
      if (set.is_supported()) supported.push_back(set.stem);
    }
    return supported;
  }();
  return kernels;
}

const StemKernel* FindStemKernel(const char* name) {
  if (std::strcmp(name, kReference) == 0) return nullptr;
  const auto& supported = StemKernels();
  bool suffices = std::strcmp(name, ConvKernelNames().front()) == 0;  // both tables are in the same order
  for (const StemInstructionSet& set : kStemInstructionSets) {
    suffices |= set.IsLike(name);
    if (suffices && std::find(supported.begin(), supported.end(), set.stem) != supported.end()) return set.stem;
  }
  return &kStemPortable;
}

}  // namespace bnnedge
