// The loop of the full tile, 2 pixels x 16 output channels. It computes the same as Step in conv_2x16.h, in assembly,
// because compilers spill or copy registers in it, and in-order cores need dependent operations well apart.
//
// A pair of words is two halves of eight output channels, each half four independent chains (2 pixels x 2 vectors).
// Registers: 0-7 counts and 8-15 parity (four vectors of pixel 0, four of pixel 1), 20-23 four more for parity, 16-19
// the prefixes of the two pixels (first, second, first, second), 26-29 weights (first and second prefix of two
// vectors), 24, 25, 28 and 31 carries, 30 the constants of the counter. The new parities of a half go to the registers
// that the half before has just freed, so after a pair of words everything has moved on by a half; the next pair takes
// the halves in reverse order and moves it back.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "store_neon.h"

namespace bnnedge {
namespace {

// Counts is a register of counters, whose type is up to the kernel.
template <typename Counts, int kPixels>
struct TileState {
  Counts counts[kPixels][kVectors];
  uint32x4_t parity[kPixels][kVectors];  // t of the last pair, step 4 of conv_2x16.h
};

}  // namespace
}  // namespace bnnedge

// clang-format off
#define BNNEDGE_3(op, to, a, b) op " v" #to ".16b, v" #a ".16b, v" #b ".16b\n"
#define BNNEDGE_CNT(to) "cnt v" #to ".16b, v" #to ".16b\n"

// Two neighbouring vectors of both pixels. `old` and `fresh` are the parities of pixel 0, then of pixel 1, before and
// after; n are the counts, and COUNT(n, ones) adds to them. WEIGHT(w, at, more) loads a weight register of the next
// half, FIRST and SECOND load the prefixes of both pixels for the next pair.
#define BNNEDGE_HALF(old0, old1, old2, old3, fresh0, fresh1, fresh2, fresh3, COUNT, n0, n1, n2, n3, WEIGHT, at, FIRST, \
                     SECOND)                                                                                          \
  BNNEDGE_3("eor", 24, 16, 26)                                                                                        \
  BNNEDGE_3("eor", 31, 18, 26)                                                                                        \
  BNNEDGE_3("eor", 25, 16, 28)                                                                                        \
  BNNEDGE_3("eor", 28, 18, 28)                                                                                        \
  BNNEDGE_3("eor", fresh0, 17, 27)                                                                                    \
  BNNEDGE_3("eor", fresh2, 19, 27)                                                                                    \
  BNNEDGE_3("eor", fresh1, 17, 29)                                                                                    \
  BNNEDGE_3("eor", fresh3, 19, 29)                                                                                    \
  WEIGHT(26, at, 0) FIRST                                                                                             \
  BNNEDGE_3("bsl", 28, fresh3, old3)                                                                                  \
  BNNEDGE_3("bsl", 24, fresh0, old0)                                                                                  \
  WEIGHT(27, at, 16) SECOND                                                                                           \
  BNNEDGE_3("bsl", 31, fresh2, old2)                                                                                  \
  BNNEDGE_3("bsl", 25, fresh1, old1)                                                                                  \
  WEIGHT(29, at, 48)                                                                                                  \
  BNNEDGE_CNT(28)                                                                                                     \
  BNNEDGE_CNT(24)                                                                                                     \
  BNNEDGE_CNT(31)                                                                                                     \
  BNNEDGE_CNT(25)                                                                                                     \
  COUNT(n3, 28)                                                                                                       \
  WEIGHT(28, at, 32)                                                                                                  \
  COUNT(n0, 24)                                                                                                       \
  COUNT(n2, 31)                                                                                                       \
  COUNT(n1, 25)

// Runs two pairs of words %[rounds] times. An odd number of pairs begins at label 2.
#define BNNEDGE_ROUNDS(ADD, SUBTRACT, WEIGHT, FIRST, SECOND, NEXT)                                                  \
  "1:\n"                                                                                                            \
  BNNEDGE_HALF(8, 9, 12, 13, 20, 21, 22, 23, ADD, 0, 1, 4, 5, WEIGHT, 64, "", "")                                   \
  BNNEDGE_HALF(10, 11, 14, 15, 8, 9, 12, 13, ADD, 2, 3, 6, 7, WEIGHT, 128, FIRST(32), SECOND(48))                   \
  "2:\n"                                                                                                            \
  BNNEDGE_HALF(8, 9, 12, 13, 10, 11, 14, 15, SUBTRACT, 2, 3, 6, 7, WEIGHT, 192, "", "")                             \
  BNNEDGE_HALF(20, 21, 22, 23, 8, 9, 12, 13, SUBTRACT, 0, 1, 4, 5, WEIGHT, 256, FIRST(64), SECOND(80))              \
  NEXT                                                                                                              \
  "subs %[rounds], %[rounds], #1\n"                                                                                 \
  "b.ne 1b\n"

#define BNNEDGE_LOAD_WEIGHT(w, at, more) "ldr q" #w ", [%[weights], #(" #at "+" #more ")]\n"
#define BNNEDGE_LOAD_FIRST(at) "ldr q16, [%[input0], #" #at "]\nldr q18, [%[input1], #" #at "]\n"
#define BNNEDGE_LOAD_SECOND(at) "ldr q17, [%[input0], #" #at "]\nldr q19, [%[input1], #" #at "]\n"
#define BNNEDGE_LOAD_NEXT                \
  "add %[weights], %[weights], #256\n"   \
  "add %[input0], %[input0], #64\n"      \
  "add %[input1], %[input1], #64\n"

#define BNNEDGE_NO_WEIGHT(w, at, more) ""
#define BNNEDGE_NO_INPUT(at) ""

#define BNNEDGE_ZERO(n) "movi v" #n ".4s, #0\n"
#define BNNEDGE_ZERO_COUNTS                                                                                       \
  BNNEDGE_ZERO(0) BNNEDGE_ZERO(1) BNNEDGE_ZERO(2) BNNEDGE_ZERO(3) BNNEDGE_ZERO(4) BNNEDGE_ZERO(5) BNNEDGE_ZERO(6) \
  BNNEDGE_ZERO(7)

// A function body that counts `pairs` pairs of words. Counts start at zero; the parity comes from `state` and is left
// there. The single pair of an odd number comes first, when all parities are the same, so that their registers do not
// matter.
#define BNNEDGE_TILE(ADD, SUBTRACT, CONSTANTS)                                                                       \
  int64_t rounds = (pairs + 1) / 2;                                                                                  \
  asm volatile(BNNEDGE_ZERO_COUNTS CONSTANTS                                                                         \
               "ldp q8, q9, [%[state], #128]\n"                                                                      \
               "ldp q10, q11, [%[state], #160]\n"                                                                    \
               "ldp q12, q13, [%[state], #192]\n"                                                                    \
               "ldp q14, q15, [%[state], #224]\n"                                                                    \
               BNNEDGE_LOAD_WEIGHT(26, 0, 0) BNNEDGE_LOAD_WEIGHT(27, 0, 16) BNNEDGE_LOAD_WEIGHT(28, 0, 32)           \
               BNNEDGE_LOAD_WEIGHT(29, 0, 48) BNNEDGE_LOAD_FIRST(0) BNNEDGE_LOAD_SECOND(16)                          \
               "tbz %[pairs], #0, 1f\n"                                                                              \
               "mov v20.16b, v8.16b\n"                                                                               \
               "mov v21.16b, v8.16b\n"                                                                               \
               "mov v22.16b, v8.16b\n"                                                                               \
               "mov v23.16b, v8.16b\n"                                                                               \
               "sub %[weights], %[weights], #128\n"                                                                  \
               "sub %[input0], %[input0], #32\n"                                                                     \
               "sub %[input1], %[input1], #32\n"                                                                     \
               "b 2f\n"                                                                                              \
               BNNEDGE_ROUNDS(ADD, SUBTRACT, BNNEDGE_LOAD_WEIGHT, BNNEDGE_LOAD_FIRST, BNNEDGE_LOAD_SECOND,           \
                              BNNEDGE_LOAD_NEXT)                                                                     \
               "stp q0, q1, [%[state]]\n"                                                                            \
               "stp q2, q3, [%[state], #32]\n"                                                                       \
               "stp q4, q5, [%[state], #64]\n"                                                                       \
               "stp q6, q7, [%[state], #96]\n"                                                                       \
               "stp q8, q9, [%[state], #128]\n"                                                                      \
               "stp q10, q11, [%[state], #160]\n"                                                                    \
               "stp q12, q13, [%[state], #192]\n"                                                                    \
               "stp q14, q15, [%[state], #224]\n"                                                                    \
               : [rounds] "+r"(rounds), [weights] "+r"(weights), [input0] "+r"(input0), [input1] "+r"(input1)        \
               : [state] "r"(state), [pairs] "r"(pairs)                                                              \
               : BNNEDGE_CLOBBERS)

// A function body with the same loop on registers only, for the peak.
#define BNNEDGE_TILE_PEAK(ADD, SUBTRACT, CONSTANTS)                                                                  \
  asm volatile(BNNEDGE_ZERO_COUNTS CONSTANTS                                                                         \
               BNNEDGE_ROUNDS(ADD, SUBTRACT, BNNEDGE_NO_WEIGHT, BNNEDGE_NO_INPUT, BNNEDGE_NO_INPUT, "")              \
               : [rounds] "+r"(rounds)                                                                               \
               :                                                                                                     \
               : BNNEDGE_CLOBBERS)

#define BNNEDGE_CLOBBERS                                                                                             \
  "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",     \
      "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29",       \
      "v30", "v31"
// clang-format on
