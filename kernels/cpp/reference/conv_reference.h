#pragma once

#include <memory>

#include "bnnedge/conv.h"

namespace bnnedge {

// A Conv that follows the definitions: BConv2dReference, then the output transform of each sum. The arguments have been
// checked.
std::unique_ptr<Conv> MakeReferenceConv(const BConv2dParams& params, const uint32_t* filter,
                                        const OutputTransform& transform);

}  // namespace bnnedge
