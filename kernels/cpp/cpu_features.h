// The features of the CPU and of the operating system that kernels need. No other file asks for them.
#pragma once

#include <cstdint>

namespace bnnedge {

#ifdef BNNEDGE_X86_64
bool HasPopcnt();
bool HasAvx2();        // with FMA
bool HasAvx512();      // with VPOPCNTDQ
bool HasAvx512Vnni();  // without VPOPCNTDQ
// The length of a window in words from which chained words (bnnedge/chain.h) are faster than plain ones. What a tile
// does once costs more than the carries save in a shorter window. On Zen 4, an operation with three sources also waits
// longer for one of them that was just computed.
int64_t ShortestChain();
#endif
#ifdef BNNEDGE_AMX
bool HasAmx();  // asks the system for permission to use tiles
#endif
#ifdef BNNEDGE_NEON
// Whether table look-ups are as fast as additions on all cores of this CPU, as a thread may move to any of them.
bool HasFastTables();
#endif
#ifdef BNNEDGE_NEON_DOT
bool HasDot();
#endif

}  // namespace bnnedge
