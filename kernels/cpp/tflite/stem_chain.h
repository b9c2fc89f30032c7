// An int8 stem among the operators of a graph:
//
//   [SPACE_TO_DEPTH by 2] -> QUANTIZE -> [PAD] -> CONV_2D -> [[PAD] -> MAX_POOL_2D] -> [DEQUANTIZE]
//
// from a float image to int8 codes, or to floats again. Nothing else reads the tensors between these operators. A PAD
// adds rows and columns of the zero point, which before a pool is the lowest code. The chain ends with DEQUANTIZE, or
// where nothing reads its codes; int8 networks begin in the same way, and are left to the interpreter. Operators that
// follow are fused as they are with a convolution (fuse.h).
//
// Results are those of TensorFlow Lite's reference kernels (Arithmetic::kFixedPoint in bnnedge/stem.h). Its faster
// kernels differ from these by one code where a value is next to a tie.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "bnnedge/stem.h"

namespace bnnedge::tflite {

struct StemChain {
  std::vector<int32_t> nodes;
  // The numbers of tensors; kOptionalTensor for those that the chain does not have.
  int32_t image, filter, bias;
  int32_t quantized = kOptionalTensor, convolved = kOptionalTensor, pooled = kOptionalTensor, floats = kOptionalTensor;
  std::vector<int32_t> inner;  // further tensors between its operators

  // The pads are those of PAD alone, since those of SAME depend on the size of the image.
  StemParams params{};
  bool conv_is_same = false, pool_is_same = false;
  std::vector<float> filter_scale;  // [O]

  int32_t Output() const { return floats != kOptionalTensor ? floats : pooled != kOptionalTensor ? pooled : convolved; }
};

// Finds the stems among `nodes`, which are in the order of execution. Throws ModelError for a node that cannot be read.
std::vector<StemChain> FindStems(Context* context, const std::vector<int32_t>& nodes);

}  // namespace bnnedge::tflite
