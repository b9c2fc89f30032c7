// Which nodes of a graph the delegate runs.
//
// It runs all operators of LCE, and *glue*: builtin operators that follow them and can run in the same partition,
// because they do not wait for another operator that reads the partition's results (as x - MEAN(x) does). If the
// interpreter ran it, each of these operators would end a partition, or cost a pass over a map that a convolution can
// save (fuse.h). Glue has one exact result, so that claiming it changes no bit:
//   ADD, SUB                 float32, with broadcasting, activation NONE or one of the clips that follow
//   MUL                      the same with a constant
//   RELU, RELU_N1_TO_1, RELU6, MAXIMUM and MINIMUM of a map and a constant number, PRELU with a constant a channel
//                            float32
//   PAD                      float32 or int32 (packed bits), constant amounts
//   STRIDED_SLICE            float32 or int32, whole axes with constant steps above 0
//   GATHER                   float32 with constant indices; computed once if the table is constant too
//   CONV_2D of one pixel     float32, constant filter and bias, where the CPU multiplies and adds with one rounding:
//   then
//                            the sums are XNNPACK's to the bit
// An int8 stem is claimed as a whole (stem_chain.h).
// The interpreter keeps other sums of many numbers (MEAN, pools). Their last bit depends on the order of the additions,
// which in XNNPACK depends on the CPU's registers and differs from that of the built-in kernels. This loses little:
// resnet18_1w1a by rbnn has the MEAN of a map before each sign, which makes 33 partitions of both libraries together,
// and 3 if these are claimed. On Zen 3, at 32x32 and 224x224, the 3 were not faster, and 1 % faster with sums that cost
// nothing.
// Denormal numbers are the exception to exact results: they are kept here as IEEE 754 has it, and XNNPACK flushes them
// to zero.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"

namespace bnnedge::tflite {

// The indices of the nodes in the order of execution. `kernel` is the one that they will run on, empty for the fastest.
// Throws ModelError for a graph that cannot be read.
std::vector<int32_t> ClaimedNodes(Context* context, const std::string& kernel);

}  // namespace bnnedge::tflite
