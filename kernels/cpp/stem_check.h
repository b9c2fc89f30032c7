// What is wrong with a stem, before anything relies on it.
#pragma once

#include <initializer_list>
#include <string>

#include "bnnedge/stem.h"

namespace bnnedge {

constexpr int64_t kMostStemBytes = int64_t{1} << 46;

// Of factors that are not below 0; kMostStemBytes + 1 for whatever is larger.
int64_t BoundedProduct(std::initializer_list<int64_t> factors);

// An empty string or one sentence.
std::string CheckStem(const StemParams& params, const StemWeights& weights, const Tail& tail);

}  // namespace bnnedge
