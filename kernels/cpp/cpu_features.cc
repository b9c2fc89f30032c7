#include "cpu_features.h"

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
#include <string>
#endif

namespace bnnedge {

#ifdef BNNEDGE_X86_64
namespace {

// These functions use cpuid and xgetbv instead of __builtin_cpu_supports, which the run-time libraries of some
// compilers leave without an answer.
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

// Which registers the operating system saves: bit 1 xmm, 2 ymm, 5 to 7 masks and zmm, 17 and 18 tiles.
bool SystemSaves(unsigned registers) {
  if ((AskCpu(1).ecx & bit_OSXSAVE) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return HasAll(low, registers);
}

#ifndef BNNEDGE_EMULATE
// Zen 4 is AMD's family 19h.
bool IsZen4() {
  const CpuId maker = AskCpu(0);
  const unsigned version = AskCpu(1).eax;
  return maker.ebx == signature_AMD_ebx && maker.ecx == signature_AMD_ecx &&
         (version >> 8 & 15) + (version >> 20 & 255) == 0x19;
}
#endif

}  // namespace

bool HasPopcnt() { return HasAll(AskCpu(1).ecx, bit_POPCNT); }

// All CPUs with AVX2 but one of VIA's have FMA too.
bool HasAvx2() {
  return HasAll(AskCpu(1).ecx, bit_POPCNT | bit_FMA) && SystemSaves(0x06) && HasAll(AskCpu(7).ebx, bit_AVX2);
}

#ifdef BNNEDGE_EMULATE
bool HasAvx512() { return true; }
bool HasAvx512Vnni() { return true; }
int64_t ShortestChain() { return 16; }
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

int64_t ShortestChain() {
  static const int64_t words = IsZen4() ? 64 : 16;
  return words;
}
#endif
#endif

#if defined(BNNEDGE_AMX) && defined(BNNEDGE_EMULATE)
bool HasAmx() { return true; }
#elif defined(BNNEDGE_AMX)
// The system keeps the tiles of a process that asked for them.
bool HasAmx() {
  constexpr unsigned kTiles = 1u << 17 | 1u << 18, kTileAndInt8 = 1u << 24 | 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arguments of arch_prctl
  return HasAvx512Vnni() && SystemSaves(kTiles) && HasAll(AskCpu(7).edx, kTileAndInt8) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#ifdef BNNEDGE_NEON
#if defined(__linux__)
namespace {

// Arm's cores on which neon_table is ahead of the others (benchmarks/results/mca_neon.md) and those built like them. It
// is behind on Cortex-A72, where a look-up takes three times as long as an addition, and on Neoverse V1, where half of
// the units do look-ups.
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

}  // namespace

// Where Linux does not list the cores, the answer is that of the core that asks.
bool HasFastTables() {
  int listed = 0;
  for (long core = 0; core < sysconf(_SC_NPROCESSORS_CONF); ++core) {
    const std::string path = "/sys/devices/system/cpu/cpu" + std::to_string(core) + "/regs/identification/midr_el1";
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
  return false;
}
#else
bool HasFastTables() { return false; }
#endif
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

}  // namespace bnnedge
