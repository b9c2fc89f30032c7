#include "tail.h"

#include <limits>

namespace bnnedge {

bool Tail::IsEmpty() const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return !adds_residual && slope.empty() && offset.empty() && low == -kInfinity && high == kInfinity && !writes_bits;
}

std::string CheckTail(const Tail& tail, int64_t channels) {
  if (!(tail.low <= tail.high)) return "the tail's low must not be above its high";
  for (const auto* values : {&tail.slope, &tail.offset, &tail.limit}) {
    if (!values->empty() && values->size() != static_cast<size_t>(channels)) {
      return "the tail's slope, offset and limit must have one value per output channel, expected " +
             std::to_string(channels) + ", got " + std::to_string(values->size());
    }
  }
  return {};
}

}  // namespace bnnedge
