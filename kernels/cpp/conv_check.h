#pragma once

#include <string>

#include "bnnedge/conv.h"

namespace bnnedge {

// Returns an empty string, or one sentence that says what is wrong with the output transform of such a convolution.
std::string CheckOutputTransform(const OutputTransform& transform, const BConv2dParams& params);

}  // namespace bnnedge
