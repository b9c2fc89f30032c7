// An int8 stem among the operators of a graph:
//
//   [SPACE_TO_DEPTH by 2] -> QUANTIZE -> [PAD] -> CONV_2D -> [[PAD] -> MAX_POOL_2D] -> [DEQUANTIZE]
//
// from a float image to int8 codes, or floats again. Nothing else reads what is between them; a PAD adds rows and
// columns of the zero point, which before a pool is the lowest code. It ends with DEQUANTIZE, or where nothing reads
// its codes: int8 networks begin alike, and are the interpreter's. What follows joins it as it joins a convolution
// (fuse.h).
//
// Results are those of TensorFlow Lite's reference kernels (Arithmetic::kFixedPoint in bnnedge/stem.h), of which its
// faster ones differ by a code where values are next to a tie.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "bnnedge/stem.h"

namespace bnnedge::tflite {

struct StemChain {
  std::vector<int32_t> nodes;
  // Tensors; kOptionalTensor where the chain has no such.
  int32_t image, filter, bias;
  int32_t quantized = kOptionalTensor, convolved = kOptionalTensor, pooled = kOptionalTensor, floats = kOptionalTensor;
  std::vector<int32_t> inner;  // others between its operators

  // Pads are those of PAD; those of SAME depend on the size of the image.
  StemParams params{};
  bool conv_is_same = false, pool_is_same = false;
  std::vector<float> filter_scale;  // [O]

  int32_t Output() const {
    return floats != kOptionalTensor ? floats : pooled != kOptionalTensor ? pooled : convolved;
  }
};

// `nodes` in the order of execution. Throws ModelError for a node that cannot be read.
std::vector<StemChain> FindStems(Context* context, const std::vector<int32_t>& nodes);

}  // namespace bnnedge::tflite
