// Which nodes of a graph the delegate runs.
//
// All operators of LCE; and *glue*, builtin operators behind them that can run in the same partition, since they do not
// wait for another operator that reads its results (as x - MEAN(x) does). Left alone, each would end a partition, or
// cost a pass over a map that a convolution can do on the way (fuse.h). Glue is what has one exact result, so that
// claiming it turns no bit:
//   ADD, SUB                 float32, with broadcasting, activation NONE or one of the clips that follow
//   MUL                      the same with a constant
//   RELU, RELU_N1_TO_1, RELU6, MAXIMUM and MINIMUM of a map and a constant number, PRELU with a constant a channel
//                            float32
//   PAD                      float32 or int32 (packed bits), constant amounts
//   STRIDED_SLICE            float32 or int32, whole axes with constant steps above 0
//   GATHER                   float32 with constant indices; computed once if the table is constant too
//   CONV_2D of one pixel     float32, constant filter and bias, where the CPU multiplies and adds with one rounding: then
//                            the sums are XNNPACK's to the bit
// An int8 stem is claimed as a whole (stem_chain.h).
// Other sums of many numbers (MEAN, pools) are left to the interpreter: their last bit depends on the order of adding,
// which is another one in XNNPACK, by the CPU's registers, than in the built-in kernels. Little is lost: resnet18_1w1a
// by rbnn, with the MEAN of a map before each sign, has 33 partitions, ours and XNNPACK's, and 3 if they are claimed;
// on Zen 3, at 32x32 and 224x224, it was not faster with these, and 1 % faster with sums that cost nothing.
// Denormal numbers are the exception: they are kept here as IEEE 754 has it, where XNNPACK makes zeros of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"

namespace bnnedge::tflite {

// Indices of nodes in the order of execution, to run on `kernel`, empty for the fastest. Throws ModelError for a graph
// that cannot be read.
std::vector<int32_t> ClaimedNodes(Context* context, const std::string& kernel);

}  // namespace bnnedge::tflite
