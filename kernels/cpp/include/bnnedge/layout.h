// The bit contract of kernels/layout.py in C++: bit 1 is -1; channel c is bit c % 32 (least significant first) of
// 32-bit word c / 32; spare bits are 0; activations NHWC, filters OHWI; with groups, C / groups is a multiple of 32.
#pragma once

#include <cstdint>

#include "bnnedge/rounding.h"

namespace bnnedge {

constexpr int kBitLayoutVersion = 1;
constexpr int kWordBits = 32;

constexpr int64_t WordsFor(int64_t channels) { return CeilDiv(channels, kWordBits); }

}  // namespace bnnedge
