// The only place that looks at CPU features and at BNNEDGE_KERNEL.
#include <cstdlib>
#include <cstring>

#include "bnnedge/conv_kernel.h"

#ifdef BNNEDGE_X86_64
#include <cpuid.h>
#endif
#if defined(BNNEDGE_NEON_DOT) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bnnedge {
namespace {

constexpr char kReference[] = "reference";

struct Candidate {
  const ConvKernel* kernel;
  bool (*supported)();
};

bool Always() { return true; }

#ifdef BNNEDGE_X86_64
// By cpuid and xgetbv, not __builtin_cpu_supports: some compilers' run-time libraries leave that without an answer.
struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the CPU has no such leaf.
CpuId AskCpu(unsigned leaf) {
  CpuId id;
  __get_cpuid_count(leaf, 0, &id.eax, &id.ebx, &id.ecx, &id.edx);
  return id;
}

constexpr bool HasAll(unsigned word, unsigned bits) { return (word & bits) == bits; }

// Which registers the operating system saves: bit 1 xmm, 2 ymm, 5 to 7 masks and zmm.
bool SystemSaves(unsigned registers) {
  if ((AskCpu(1).ecx & bit_OSXSAVE) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return HasAll(low, registers);
}

bool HasPopcnt() { return HasAll(AskCpu(1).ecx, bit_POPCNT); }
bool HasAvx2() { return HasPopcnt() && SystemSaves(0x06) && HasAll(AskCpu(7).ebx, bit_AVX2); }
bool HasAvx512() {
  return HasPopcnt() && SystemSaves(0xe6) &&
         HasAll(AskCpu(7).ebx, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) &&
         HasAll(AskCpu(7).ecx, bit_AVX512VPOPCNTDQ);
}
#endif

#ifdef BNNEDGE_NEON_DOT
bool HasDot() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  return true;  // every Mac on AArch64 has it
#else
  return false;
#endif
}
#endif

// Fastest first. A new kernel is one line here, one in conv_kernel.h and one in CMakeLists.txt.
constexpr Candidate kCompiled[] = {
#ifdef BNNEDGE_X86_64
    {&kConvAvx512, HasAvx512},
    {&kConvAvx2, HasAvx2},
    {&kConvPopcnt, HasPopcnt},
#endif
#ifdef BNNEDGE_NEON_DOT
    {&kConvNeonDot, HasDot},
#endif
#ifdef BNNEDGE_NEON
    {&kConvNeon, Always},
#endif
    {&kConvPortable, Always},
};

std::vector<const char*> FindSupported() {
  std::vector<const char*> names;
  for (const Candidate& candidate : kCompiled) {
    if (candidate.supported()) names.push_back(candidate.kernel->name);
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
  for (const Candidate& candidate : kCompiled) {
    if (std::strcmp(candidate.kernel->name, name) == 0) return candidate.kernel;
  }
  return nullptr;
}

}  // namespace bnnedge
