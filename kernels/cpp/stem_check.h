// Checks of a stem, before anything relies on it.
#pragma once

#include <initializer_list>
#include <string>

#include "bnnedge/stem.h"

namespace bnnedge {

constexpr int64_t kMostStemBytes = int64_t{1} << 46;

// The product of factors that are not below 0, or kMostStemBytes + 1 if it is larger than kMostStemBytes.
int64_t BoundedProduct(std::initializer_list<int64_t> factors);

// Returns an empty string, or one sentence that says what is wrong.
std::string CheckStem(const StemParams& params, const StemWeights& weights, const Tail& tail);

}  // namespace bnnedge
