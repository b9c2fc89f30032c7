// The constants of a convolution, derived. Steps 1 to 3 of bnnedge/bconv2d.h define the sum s of an output. Let K be
// the number of its products, Cg those of one tap, and p the popcount of (input xor filter) over all taps, where the
// taps outside of the image read words of 0.
//   1. With pad_value 1 the outside taps read +1, which is what words of 0 are: s = K - 2 p.
//   2. With pad_value 0 they must not count. Such a tap adds Cg - 2 popcount(w) to K - 2 p, so
//        s = K - 2 p - e,  e = sum over the outside taps of (Cg - 2 popcount(w)).
//      e depends on the output channel and on which taps are outside. Output pixels with the same taps outside form a
//      border class, the product of a row class and a column class; there are few.
//   3. So the accumulator is v = base -+ 2 p in either domain, with one base for each class and channel:
//        Domain::kSum              v = s      base = K - e, minus
//        Domain::kDoubledPopcount  v = K - s  base = e, plus
//      The inner loop counts p and knows nothing about padding.
//   4. A threshold on v is one on p, which is an integer:
//        base - 2 p < t  <=>  p > floor((base - t) / 2)        base + 2 p > t  <=>  p > floor((t - base) / 2)
//   5. With Cg even, K and e are even too, and
//        v * multiplier = (base / 2 -+ p) * (2 multiplier) = (-+ base / 2 - p) * (-+ 2 multiplier)
//      to the last bit, unless 2 multiplier overflows, or the multiplier is subnormal (some hosts take these for 0).
#include "conv_plan.h"

#include <algorithm>

#include "bnnedge/rounding.h"
#include "border.h"

namespace bnnedge {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 46;
constexpr int64_t kMaxTableEntries = (int64_t{1} << 31) - 1;

int64_t FloorHalf(int64_t value) { return value >= 0 ? value / 2 : -((1 - value) / 2); }

// Sets the sizes of the image that the kernel reads, the runs, and the bytes of that image.
std::string MakeImage(const ConvFilter& filter, ConvPlan* plan) {
  const BConv2dParams& p = plan->params;
  plan->rows = (plan->out_height - 1) * p.stride_height + p.dilation_height * (p.kernel_height - 1) + 1;
  plan->columns = (plan->out_width - 1) * p.stride_width + p.dilation_width * (p.kernel_width - 1) + 1;
  plan->copies = p.pad_top > 0 || p.pad_left > 0 || plan->rows > p.in_height || plan->columns > p.in_width;
  if (!plan->copies) {
    plan->rows = p.in_height;
    plan->columns = p.in_width;
  }
  plan->image_row_words = plan->columns * p.InWords();  // below 2^31 * 2^26
  if (filter.ReadsPairs()) {
    if (plan->out_width % 2 == 1) plan->wrap_words = (p.dilation_width * (p.kernel_width - 1) + 1) * p.InWords();
    plan->image_row_words = (plan->image_row_words + plan->wrap_words) * kPairWords;
    plan->strip_rows = std::clamp<int64_t>(filter.kernel.strip_pixels / plan->out_width, 1, plan->out_height);
  }
  const bool chains = filter.chain_row != nullptr;
  if (chains) {
    plan->rows = filter.rows_are_outside ? 0 : plan->out_height;
    plan->chain_columns = RoundUp(plan->image_row_words, kChainColumns);
    plan->image_row_words = kChainLead + plan->chain_columns * (p.kernel_height + 1);
  }
  const int64_t row_bytes = plan->image_row_words * 4;
  if (chains && filter.rows_are_outside) {
    plan->scratch_bytes = Aligned(row_bytes);
  } else if (plan->copies || chains || filter.ReadsPairs()) {
    if (row_bytes > kMaxBytes / plan->rows / p.batch) return "the padded input is too large";
    plan->copy_bytes = Aligned(p.batch * plan->rows * row_bytes);
  }
  return {};
}

// The words of neighbouring taps are neighbours in the image too, with dilation 1 and one group; so are those of
// neighbouring rows if the window is as wide as the image. A window of chained words is one run.
void FindRuns(const ConvFilter& filter, ConvPlan* plan) {
  if (filter.chain_row != nullptr) {
    plan->runs.push_back({0, filter.k_words});
    return;
  }
  const BConv2dParams& p = plan->params;
  const int64_t in_words = p.InWords(), tap_words = p.FilterWords(), read_words = filter.ReadWords();
  for (int64_t ky = 0; ky < p.kernel_height; ++ky) {
    for (int64_t kx = 0; kx < p.kernel_width; ++kx) {
      const int64_t offset =
          ky * p.dilation_height * plan->image_row_words + kx * p.dilation_width * in_words * read_words;
      if (!plan->runs.empty() && plan->runs.back().offset + plan->runs.back().words * read_words == offset) {
        plan->runs.back().words += tap_words;
      } else {
        plan->runs.push_back({offset, tap_words});
      }
    }
  }
}

// e of step 2, for the taps outside of `row` x `column`.
int64_t OutsideSum(const ConvFilter& filter, const BConv2dParams& p, const TapRange& row, const TapRange& column,
                   int64_t o) {
  const int64_t width = p.kernel_width + 1;
  const int32_t* table = filter.ones.data() + o * (p.kernel_height + 1) * width;
  const auto above_left = [&](int64_t ky, int64_t kx) { return static_cast<int64_t>(table[ky * width + kx]); };
  const int64_t inside = above_left(row.last, column.last) - above_left(row.first, column.last) -
                         above_left(row.last, column.first) + above_left(row.first, column.first);
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t outside_taps = taps - (row.last - row.first) * (column.last - column.first);
  return p.GroupChannels() * outside_taps - 2 * (above_left(p.kernel_height, p.kernel_width) - inside);
}

// Steps 3 and 4.
int32_t Base(const ConvFilter& filter, int64_t o, int64_t outside) {
  const bool doubled = filter.IsDoubledPopcount();
  const int64_t base = doubled ? outside : filter.products - outside;
  if (filter.transform.kind != OutputKind::kBits) return static_cast<int32_t>(base);
  const int64_t threshold = filter.transform.threshold[static_cast<size_t>(o)];
  const int64_t limit = FloorHalf(doubled ? threshold - base : base - threshold);
  return static_cast<int32_t>(std::clamp<int64_t>(limit, -1, INT32_MAX));
}

// Without zero-padding all pixels are alike: one class, which is that of a window inside of the image.
BorderClasses AllInside(int64_t outputs, int64_t kernel) {
  const int64_t stride = 0, pad = 0, dilation = 1;
  return BorderClasses(outputs, stride, pad, dilation, kernel, kernel);
}

std::string MakeBase(const ConvFilter& filter, ConvPlan* plan) {
  const BConv2dParams& p = plan->params;
  const bool zero_pads = p.pad_value == 0 && plan->copies;
  const BorderClasses rows = zero_pads ? BorderClasses(plan->out_height, p.stride_height, p.pad_top, p.dilation_height,
                                                       p.in_height, p.kernel_height)
                                       : AllInside(plan->out_height, p.kernel_height);
  const BorderClasses columns = zero_pads ? BorderClasses(plan->out_width, p.stride_width, p.pad_left, p.dilation_width,
                                                          p.in_width, p.kernel_width)
                                          : AllInside(plan->out_width, p.kernel_width);
  const int64_t row_entries = static_cast<int64_t>(columns.taps.size()) * filter.padded_channels;
  if (static_cast<int64_t>(rows.taps.size()) > kMaxTableEntries / row_entries) return "too many border cases";
  for (const int32_t row : rows.of) plan->row_base.push_back(static_cast<int32_t>(row * row_entries));
  for (const int32_t column : columns.of) {
    plan->column_base.push_back(static_cast<int32_t>(column * filter.padded_channels));
  }
  const bool is_bits = filter.transform.kind == OutputKind::kBits;
  plan->base.assign(rows.taps.size() * static_cast<size_t>(row_entries), is_bits ? INT32_MAX : 0);
  int32_t* base = plan->base.data();
  for (const TapRange& row : rows.taps) {
    for (const TapRange& column : columns.taps) {
      for (int64_t o = 0; o < p.out_channels; ++o) {
        base[filter.PaddedChannel(o)] = Base(filter, o, zero_pads ? OutsideSum(filter, p, row, column, o) : 0);
      }
      base += filter.padded_channels;
    }
  }
  if (!filter.half_multiplier.empty()) {
    plan->half_base = plan->base;
    for (int32_t& value : plan->half_base) value /= filter.IsDoubledPopcount() ? -2 : 2;
  }
  return {};
}

void SetPieceBytes(const ConvFilter& filter, ConvPlan* plan) {
  const int64_t strip_pixels = plan->strip_rows * plan->out_width;
  if (filter.kernel.scratch_bytes != nullptr) {
    plan->scratch_bytes = Aligned(filter.kernel.scratch_bytes(strip_pixels, filter.k_words));
  }
  int64_t aside = 0;  // elements of a strip that is not stored right away
  if (filter.merges_bits) aside = strip_pixels * WordsFor(filter.kernel.block);
  if (filter.has_tail) aside = strip_pixels * std::min(filter.kernel.block, filter.group_outputs);
  plan->piece_bytes = plan->scratch_bytes + Aligned(aside * 4);
  if (filter.ReadsPairs()) plan->piece_bytes = std::max(plan->piece_bytes, Aligned(2 * plan->PairLineWords() * 4));
}

}  // namespace

std::string MakeConvPlan(const ConvFilter& filter, const BConv2dParams& params, ConvPlan* plan) {
  *plan = ConvPlan{};
  plan->params = params;
  BConv2dSizes sizes{};
  std::string error = CheckBConv2d(params, &sizes);
  if (!error.empty()) return error;
  plan->in_words = params.InWords();
  plan->out_height = params.OutHeight();
  plan->out_width = params.OutWidth();
  error = MakeImage(filter, plan);
  if (!error.empty()) return error;
  FindRuns(filter, plan);
  error = MakeBase(filter, plan);
  SetPieceBytes(filter, plan);
  if (error.empty() && plan->piece_bytes > kMaxBytes / kMaxPieces) error = "one output row is too wide";
  return error;
}

}  // namespace bnnedge
