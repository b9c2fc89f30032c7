// The only place that looks at CPU features and at BNNEDGE_KERNEL.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/pointwise_kernel.h"
#include "bnnedge/stem_kernel.h"

#ifdef BNNEDGE_X86_64
#include <cpuid.h>
#endif
#ifdef BNNEDGE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(BNNEDGE_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#include <unistd.h>

#include <cstdio>
#endif

namespace bnnedge {
namespace {

constexpr char kReference[] = "reference";

struct Candidate {
  const ConvKernel* kernel;
  bool (*supported)();
  const PointwiseKernel* pointwise;  // of the same instruction set, or nullptr
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
// And FMA, which all CPUs with AVX2 but one of VIA's have.
bool HasAvx2() {
  return HasAll(AskCpu(1).ecx, bit_POPCNT | bit_FMA) && SystemSaves(0x06) && HasAll(AskCpu(7).ebx, bit_AVX2);
}
#ifdef BNNEDGE_EMULATE
constexpr auto HasAvx512 = Always, HasAvx512Vnni = Always;
#else
bool HasAvx512() {
  return HasPopcnt() && SystemSaves(0xe6) &&
         HasAll(AskCpu(7).ebx, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) &&
         HasAll(AskCpu(7).ecx, bit_AVX512VPOPCNTDQ);
}
bool HasAvx512Vnni() {
  return HasAvx2() && SystemSaves(0xe6) &&
         HasAll(AskCpu(7).ebx, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) &&
         HasAll(AskCpu(7).ecx, bit_AVX512VNNI);
}
// AMD's family 19h.
bool IsZen4() {
  const CpuId maker = AskCpu(0);
  const unsigned version = AskCpu(1).eax;
  return maker.ebx == signature_AMD_ebx && maker.ecx == signature_AMD_ecx &&
         (version >> 8 & 15) + (version >> 20 & 255) == 0x19;
}
#endif
#endif

#if defined(BNNEDGE_AMX) && defined(BNNEDGE_EMULATE)
constexpr auto HasAmx = Always;
#elif defined(BNNEDGE_AMX)
// The system keeps the tiles of a process that asked for them.
bool HasAmx() {
  constexpr unsigned kTiles = 1u << 17 | 1u << 18, kTileAndInt8 = 1u << 24 | 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  return HasAvx512Vnni() && SystemSaves(kTiles) && HasAll(AskCpu(7).edx, kTileAndInt8) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#ifdef BNNEDGE_NEON
// Arm's cores on which neon_table is ahead of the others (benchmarks/results/mca_neon.md) and those built like them. Not
// so: Cortex-A72, where a look-up takes three times as long as an addition, and Neoverse V1 with half its units for it.
bool LooksUpFast(uint64_t midr) {
  constexpr unsigned kArm = 0x41;
  constexpr unsigned kParts[] = {
      0xd05,                       // Cortex-A55
      0xd0b, 0xd0d, 0xd0e, 0xd0c,  // Cortex-A76, A77, A76AE; Neoverse N1
      0xd41, 0xd42, 0xd4b,         // Cortex-A78, A78AE, A78C
      0xd47, 0xd49, 0xd4f,         // Cortex-A710; Neoverse N2, V2
  };
  if ((midr >> 24 & 0xff) != kArm) return false;
  for (const unsigned part : kParts) {
    if ((midr >> 4 & 0xfff) == part) return true;
  }
  return false;
}

// Whether all cores do: a thread may move to any of them. Where Linux does not list them, the one that asks.
bool TablesAreFast() {
#if defined(__linux__)
  int listed = 0;
  for (long core = 0; core < sysconf(_SC_NPROCESSORS_CONF); ++core) {
    const std::string path =
        "/sys/devices/system/cpu/cpu" + std::to_string(core) + "/regs/identification/midr_el1";
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (file == nullptr) continue;
    unsigned long long midr = 0;
    const bool read = std::fscanf(file, "%llx", &midr) == 1;
    std::fclose(file);
    if (read && !LooksUpFast(midr)) return false;
    listed += read;
  }
  if (listed > 0) return true;
  if ((getauxval(AT_HWCAP) & HWCAP_CPUID) != 0) {
    uint64_t midr;
    __asm__("mrs %0, midr_el1" : "=r"(midr));
    return LooksUpFast(midr);
  }
#endif
  return false;
}

bool TablesAreSlow() { return !TablesAreFast(); }
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
    {&kConvAvx512, HasAvx512, &kPointwiseAvx512},
    {&kConvAvx2, HasAvx2, &kPointwiseAvx2},
    {&kConvPopcnt, HasPopcnt, nullptr},
#endif
#ifdef BNNEDGE_NEON
    {&kConvNeonTable, TablesAreFast, &kPointwiseNeon},
#endif
#ifdef BNNEDGE_NEON_DOT
    {&kConvNeonDot, HasDot, &kPointwiseNeon},
#endif
#ifdef BNNEDGE_NEON
    {&kConvNeon, Always, &kPointwiseNeon},
    {&kConvNeonTable, TablesAreSlow, &kPointwiseNeon},
#endif
    {&kConvPortable, Always, nullptr},
};

// The same for stems, with the kernels above whose instructions suffice.
struct StemCandidate {
  const StemKernel* kernel;
  bool (*supported)();
  const ConvKernel* like[2];

  bool IsLike(const char* name) const {
    return std::any_of(std::begin(like), std::end(like), [name](const ConvKernel* kernel_like) {
      return kernel_like != nullptr && std::strcmp(kernel_like->name, name) == 0;
    });
  }
};

constexpr StemCandidate kCompiledStems[] = {
#ifdef BNNEDGE_AMX
    {&kStemAmx, HasAmx, {&kConvAvx512}},
#endif
#ifdef BNNEDGE_X86_64
    {&kStemAvx512Vnni, HasAvx512Vnni, {&kConvAvx512}},
    {&kStemAvx2, HasAvx2, {&kConvAvx2}},
#endif
#ifdef BNNEDGE_NEON_DOT
    {&kStemNeonDot, HasDot, {&kConvNeonDot}},
#endif
#ifdef BNNEDGE_NEON
    {&kStemNeon, Always, {&kConvNeon, &kConvNeonTable}},
#endif
    {&kStemPortable, Always, {&kConvPortable}},
};

const Candidate* FindCandidate(const char* name) {
  for (const Candidate& candidate : kCompiled) {
    if (std::strcmp(candidate.kernel->name, name) == 0) return &candidate;
  }
  return nullptr;
}

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
  const Candidate* const found = FindCandidate(name);
  return found == nullptr ? nullptr : found->kernel;
}

#ifdef BNNEDGE_X86_64
int64_t ShortestChain() {
#ifdef BNNEDGE_EMULATE
  return 16;
#else
  static const int64_t words = IsZen4() ? 64 : 16;
  return words;
#endif
}
#endif

const PointwiseKernel* FindPointwiseKernel(const char* kernel) {
  const Candidate* const found = FindCandidate(kernel);
  return found == nullptr ? nullptr : found->pointwise;
}

const std::vector<const StemKernel*>& StemKernels() {
  static const std::vector<const StemKernel*> kernels = [] {
    std::vector<const StemKernel*> supported;
    for (const StemCandidate& candidate : kCompiledStems) {
      if (candidate.supported()) supported.push_back(candidate.kernel);
    }
    return supported;
  }();
  return kernels;
}

const StemKernel* FindStemKernel(const char* name) {
  if (std::strcmp(name, kReference) == 0) return nullptr;
  const auto& supported = StemKernels();
  bool suffices = std::strcmp(name, ConvKernelNames().front()) == 0;  // candidates are in the same order
  for (const StemCandidate& candidate : kCompiledStems) {
    suffices |= candidate.IsLike(name);
    if (suffices && std::find(supported.begin(), supported.end(), candidate.kernel) != supported.end()) {
      return candidate.kernel;
    }
  }
  return &kStemPortable;
}

}  // namespace bnnedge
