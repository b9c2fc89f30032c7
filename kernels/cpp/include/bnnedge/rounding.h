// Integer division and rounding of sizes, which are never below 0.
#pragma once

#include <cstdint>

namespace bnnedge {

constexpr int64_t CeilDiv(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
constexpr int64_t RoundUp(int64_t value, int64_t unit) { return CeilDiv(value, unit) * unit; }

}  // namespace bnnedge
