// The image as a kernel reads it. If the caller's image will not do, one of three is made of it in the workspace:
//   a copy with borders of 0,
//   an image of pairs, for kernels that count two pixels at once (ConvKernel::pair_words),
//   rows of chained words (bnnedge/chain.h), one for each row of output pixels.
#pragma once

#include "conv_plan.h"

namespace bnnedge {

// Rows [first, last) of all images, with their borders.
void CopyRows(const ConvPlan& plan, const uint32_t* input, int64_t first, int64_t last, uint32_t* copy);

// The same rows as pairs. `lines` has room for two times plan.PairLineWords() words.
void PairRows(const ConvPlan& plan, const ConvKernel& kernel, const uint32_t* input, int64_t first, int64_t last,
              uint32_t* lines, uint32_t* pairs);

// The chained words of the image rows under one row of output pixels, plan.image_row_words words.
void ChainRow(const ConvPlan& plan, ChainRowFunction chain_row, const uint32_t* input, const OutputRow& row,
              uint32_t* to);

}  // namespace bnnedge
