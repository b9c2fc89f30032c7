// Everything of a prepared convolution that no instruction set changes; see bnnedge/conv_kernel.h for the split.
//
// Derivation of the constants. Let p be the popcount over all taps, outside ones reading zero words, W(T) the number of
// -1 among an output channel's weights at the taps T, and "out" the outside taps of a pixel that count for nothing
// (pad_value 0; with pad_value 1 there are none). Then
//   s = K - 2 p - (Cg |out| - 2 W(out))        K - s = 2 p + (Cg |out| - 2 W(out))
// so v = base -+ 2 p with base = K - e or e, e = Cg |out| - 2 W(out). A bit is a comparison of p with an integer:
//   base - 2 p < t  <=>  p > floor((base - t) / 2)        base + 2 p > t  <=>  p > floor((t - base) / 2)
// e is the same for all pixels of a border class (row class x column class). With Cg even, K and e are even, and
//   v * multiplier = (base / 2 -+ p) * (2 multiplier) = (-+ base / 2 - p) * (-+ 2 multiplier)
// to the last bit, unless 2 multiplier overflows or the multiplier is subnormal (some hosts run with those as zero).
#include "bnnedge/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bnnedge/aligned.h"
#include "bnnedge/conv_kernel.h"
#include "border.h"
#include "reference/conv_reference.h"

namespace bnnedge {
namespace {

// Pieces of one run, and so the scratch areas in the workspace, however many threads the host has.
constexpr int64_t kMaxPieces = 32;
// A copy below this many words is done by the caller: waking threads takes longer.
constexpr int64_t kParallelCopyWords = 64 * 1024;
// Weights up to this size stay in the first cache while all blocks go over a row.
constexpr int64_t kFirstCacheBytes = 20 * 1024;
constexpr int64_t kMaxBytes = int64_t{1} << 46;
constexpr int64_t kMaxTableEntries = (int64_t{1} << 31) - 1;

int64_t CeilDiv(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
int64_t FloorHalf(int64_t value) { return value >= 0 ? value / 2 : -((1 - value) / 2); }

std::string CheckScales(const std::vector<float>& values, const char* name, const BConv2dParams& p, OutputKind kind) {
  if (values.size() != static_cast<size_t>(p.out_channels)) {
    return std::string(name) + " must have one value per output channel, expected " + std::to_string(p.out_channels) +
           ", got " + std::to_string(values.size());
  }
  const auto finite = [](float value) { return std::isfinite(value); };
  if (kind == OutputKind::kInt8 && !std::all_of(values.begin(), values.end(), finite)) {
    return std::string(name) + " of an int8 output must be finite";
  }
  return {};
}

std::string CheckTail(const Transform& t, const BConv2dParams& p) {
  const Tail& tail = t.tail;
  if (tail.IsEmpty()) return {};
  if (t.kind != OutputKind::kFloat || t.layout != Layout::kNhwc) return "only float outputs in NHWC can have a tail";
  if (!(tail.low <= tail.high)) return "the tail's low must not be above its high";
  for (const auto* values : {&tail.slope, &tail.offset, &tail.limit}) {
    if (!values->empty() && values->size() != static_cast<size_t>(p.out_channels)) {
      return "the tail's slope, offset and limit must have one value per output channel, expected " +
             std::to_string(p.out_channels) + ", got " + std::to_string(values->size());
    }
  }
  if (tail.writes_bits && p.groups > 1 && p.out_channels / p.groups % kWordBits != 0) {
    return "a tail writes bits only where groups fill whole words, found " + std::to_string(p.out_channels / p.groups) +
           " channels a group";
  }
  return {};
}

std::string CheckTransform(const Transform& t, const BConv2dParams& p) {
  if (t.layout == Layout::kNchw && t.kind != OutputKind::kFloat) return "only float outputs can be NCHW";
  if (t.clamp_low > t.clamp_high) {
    return "the clamp is empty: low " + std::to_string(t.clamp_low) + ", high " + std::to_string(t.clamp_high);
  }
  const int64_t products = p.kernel_height * p.kernel_width * p.GroupChannels();
  if (t.domain == Domain::kDoubledPopcount && products > INT32_MAX / 2) {
    return "one output sums more products than a doubled popcount in int32 holds";
  }
  std::string error;
  if (t.kind == OutputKind::kFloat || t.kind == OutputKind::kInt8) {
    error = CheckScales(t.multiplier, "multiplier", p, t.kind);
    if (error.empty()) error = CheckScales(t.bias, "bias", p, t.kind);
  }
  if (t.kind == OutputKind::kBits && t.threshold.size() != static_cast<size_t>(p.out_channels)) {
    error = "threshold must have one value per output channel, expected " + std::to_string(p.out_channels) + ", got " +
            std::to_string(t.threshold.size());
  }
  return error.empty() ? CheckTail(t, p) : error;
}

// What depends on the size of the input.
struct Plan {
  BConv2dParams params{};
  int64_t in_words = 0, out_height = 0, out_width = 0;
  bool copies = false;                 // else the kernel reads the caller's input, or chained words
  int64_t rows = 0, columns = 0;       // of the image that the kernel reads
  int64_t chain_columns = 0;           // of a row of chained words, rounded up
  int64_t wrap_words = 0;              // of the window that ConvStrip::wrap is for, before they are paired
  int64_t strip_rows = 1;
  int64_t image_row_words = 0;         // from one row of what the kernel reads to the next
  std::vector<ConvRun> runs;
  std::vector<int32_t> row_base;       // [OH]: index into base
  std::vector<int32_t> column_base;    // [OW]: added to it
  std::vector<int32_t> base;           // [row classes][column classes][padded channels]
  std::vector<int32_t> half_base;      // the same of ConvStrip::half_base, or empty
  int64_t copy_bytes = 0, scratch_bytes = 0, piece_bytes = 0;
};

class PackedConv : public Conv {
 public:
  PackedConv(const ConvKernel& kernel, const BConv2dParams& params, const uint32_t* filter, const Transform& transform)
      : kernel_(kernel),
        transform_(transform),
        products_(params.kernel_height * params.kernel_width * params.GroupChannels()),
        k_words_(params.kernel_height * params.kernel_width * params.FilterWords()),
        group_outputs_(params.out_channels / params.groups),
        group_blocks_(CeilDiv(group_outputs_, kernel.block)),
        block_count_(group_blocks_ * params.groups),
        padded_channels_(block_count_ * kernel.block),
        chain_row_(ChainRowFor(kernel, params)),
        merges_bits_(transform.kind == OutputKind::kBits && params.groups > 1 && group_outputs_ % kWordBits != 0),
        has_tail_(!transform.tail.IsEmpty()) {
    plan_.params = params;
    PackWeights(chain_row_ == nullptr ? filter : ChainFilter(filter).data());
    // Of pairs, a strip has several rows, which go together only if blocks are outside.
    rows_outside_ =
        !Pairs() && (kernel.order == StripOrder::kRowsOutside || block_bytes_ * block_count_ <= kFirstCacheBytes);
    CountBits(filter);
    PadChannels(transform_.multiplier, &multiplier_);
    PadChannels(transform_.bias, &bias_);
    if (transform_.tail.writes_bits && transform_.tail.limit.empty()) {
      transform_.tail.limit.assign(static_cast<size_t>(params.out_channels), 0.0f);
    }
    if (CanHalve()) {
      half_multiplier_ = multiplier_;
      for (float& value : half_multiplier_) value *= Doubled() ? -2.0f : 2.0f;
    }
  }

  std::string Resize(int64_t batch, int64_t height, int64_t width) override {
    Plan next;
    next.params = plan_.params;
    next.params.batch = batch;
    next.params.in_height = height;
    next.params.in_width = width;
    std::string error = MakePlan(&next);
    if (error.empty()) plan_ = std::move(next);
    return error;
  }

  const BConv2dParams& params() const override { return plan_.params; }
  const char* kernel_name() const override { return kernel_.name; }
  int64_t WorkspaceBytes() const override { return plan_.copy_bytes + kMaxPieces * plan_.piece_bytes; }

  void Run(const ConvTensors& tensors, void* workspace, const Parallel& parallel) const override {
    Job job{};
    job.conv = this;
    job.tensors = &tensors;
    job.workspace = static_cast<unsigned char*>(workspace);
    const int64_t threads = std::max(1, parallel.threads);
    job.image = plan_.copy_bytes > 0 ? reinterpret_cast<const uint32_t*>(job.workspace) : tensors.input;
    ChoosePieces(threads, &job);
    if (chain_row_ != nullptr) {
      // Each piece of rows makes its own; where pieces share them, they are few.
      if (!rows_outside_ && job.block_pieces > 1) ChainRows(job, 0, plan_.params.batch * plan_.out_height);
    } else if (plan_.copy_bytes > 0) {
      const int64_t pieces = std::min({threads, kMaxPieces, CopiedRows()});
      job.copy_pieces = plan_.copy_bytes / 4 < kParallelCopyWords ? 1 : pieces;
      RunPieces(parallel, job.copy_pieces, [](void* context, int64_t i) {
        const Job& j = *static_cast<const Job*>(context);
        j.conv->Pairs() ? j.conv->PairRows(j, i) : j.conv->CopyRows(j, i);
      }, &job);
    }
    RunPieces(parallel, job.row_pieces * job.block_pieces, [](void* context, int64_t i) {
      const Job& j = *static_cast<const Job*>(context);
      j.conv->RunPiece(j, i);
    }, &job);
  }

 private:
  struct Job {
    const PackedConv* conv;
    const ConvTensors* tensors;
    const uint32_t* image;  // what the kernel reads: the chained words, the copy, or the input
    unsigned char* workspace;
    int64_t copy_pieces, row_pieces, block_pieces;
  };

  // Of output channels: what a strip needs to know.
  struct Block {
    int64_t index, first_channel, channels;
    int64_t group_word;  // of a pixel: the first one of the group
    bool starts_group;
  };

  // Of output pixels.
  struct Row {
    int64_t index;  // among the rows of all images
    int64_t image, y;
  };
  // By rows of the same image.
  void Advance(Row* row, int64_t rows = 1) const {
    row->index += rows;
    row->y += rows;
    if (row->y == plan_.out_height) {
      row->y = 0;
      ++row->image;
    }
  }

  static void RunPieces(const Parallel& parallel, int64_t count, void (*piece)(void*, int64_t), Job* job) {
    if (count > 1) {
      parallel.run(parallel.host, count, piece, job);
    } else {
      piece(job, 0);
    }
  }

  // ---- Preparation ----

  // Or nullptr. The columns of a window have to be neighbours.
  static ChainRowFunction ChainRowFor(const ConvKernel& kernel, const BConv2dParams& p) {
    const bool neighbours = p.groups == 1 && (p.dilation_width == 1 || p.kernel_width == 1);
    if (kernel.chain == nullptr || !neighbours) return nullptr;
    return kernel.chain(p.kernel_height, p.kernel_height * p.kernel_width * p.FilterWords());
  }

  // The running xor of each channel's words, column by column.
  std::vector<uint32_t> ChainFilter(const uint32_t* filter) const {
    const BConv2dParams& p = plan_.params;
    const int64_t columns = p.kernel_width * p.FilterWords();
    std::vector<uint32_t> chained;
    chained.reserve(static_cast<size_t>(p.out_channels * k_words_));
    for (int64_t o = 0; o < p.out_channels; ++o, filter += k_words_) {
      uint32_t running = 0;
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < p.kernel_height; ++r) chained.push_back(running ^= filter[r * columns + c]);
      }
    }
    return chained;
  }

  void PackWeights(const uint32_t* filter) {
    block_bytes_ = Aligned(kernel_.packed_bytes(std::min(kernel_.block, group_outputs_), k_words_));
    weights_ = AllocateAligned(block_bytes_ * block_count_);
    for (int64_t i = 0; i < block_count_; ++i) {
      const int64_t group = i / group_blocks_, first = i % group_blocks_ * kernel_.block;
      const Block block{i, group * group_outputs_ + first, std::min(kernel_.block, group_outputs_ - first),
                        group * plan_.params.FilterWords(), first == 0};
      kernel_.pack_weights(filter + block.first_channel * k_words_, block.channels, k_words_,
                           weights_.get() + i * block_bytes_);
      blocks_.push_back(block);
    }
  }

  // bits_[o][(ky, kx)] = bits set in channel o's filter at the taps above and left of (ky, kx), both exclusive.
  void CountBits(const uint32_t* filter) {
    const BConv2dParams& p = plan_.params;
    if (p.pad_value == 1) return;
    const int64_t width = p.kernel_width + 1, tap_words = p.FilterWords();
    bits_.assign(static_cast<size_t>(p.out_channels * (p.kernel_height + 1) * width), 0);
    int32_t* table = bits_.data();
    for (int64_t o = 0; o < p.out_channels; ++o, table += (p.kernel_height + 1) * width) {
      for (int64_t ky = 0; ky < p.kernel_height; ++ky) {
        int32_t row = 0;
        for (int64_t kx = 0; kx < p.kernel_width; ++kx) {
          for (int64_t w = 0; w < tap_words; ++w) row += CountOnes(*filter++);
          table[(ky + 1) * width + kx + 1] = table[ky * width + kx + 1] + row;
        }
      }
    }
  }

  static int32_t CountOnes(uint32_t bits) {
    bits -= (bits >> 1) & 0x55555555u;
    bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
    return static_cast<int32_t>((((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
  }

  void PadChannels(const std::vector<float>& values, std::vector<float>* padded) const {
    if (values.empty()) return;
    padded->assign(static_cast<size_t>(padded_channels_), 0.0f);
    for (int64_t o = 0; o < plan_.params.out_channels; ++o) {
      (*padded)[static_cast<size_t>(PaddedChannel(o))] = values[static_cast<size_t>(o)];
    }
  }

  int64_t PaddedChannel(int64_t o) const {
    return o / group_outputs_ * group_blocks_ * kernel_.block + o % group_outputs_;
  }

  std::string MakePlan(Plan* plan) const {
    const BConv2dParams& p = plan->params;
    BConv2dSizes sizes{};
    std::string error = CheckBConv2d(p, &sizes);
    if (!error.empty()) return error;
    plan->in_words = p.InWords();
    plan->out_height = p.OutHeight();
    plan->out_width = p.OutWidth();
    plan->rows = (plan->out_height - 1) * p.stride_height + p.dilation_height * (p.kernel_height - 1) + 1;
    plan->columns = (plan->out_width - 1) * p.stride_width + p.dilation_width * (p.kernel_width - 1) + 1;
    plan->copies = p.pad_top > 0 || p.pad_left > 0 || plan->rows > p.in_height || plan->columns > p.in_width;
    if (!plan->copies) {
      plan->rows = p.in_height;
      plan->columns = p.in_width;
    }
    plan->image_row_words = plan->columns * p.InWords();  // below 2^31 * 2^26
    if (Pairs()) {
      if (plan->out_width % 2 == 1) plan->wrap_words = (p.dilation_width * (p.kernel_width - 1) + 1) * p.InWords();
      plan->image_row_words = (plan->image_row_words + plan->wrap_words) * kPairWords;
      plan->strip_rows = std::clamp<int64_t>(kernel_.strip_pixels / plan->out_width, 1, plan->out_height);
    }
    if (chain_row_ != nullptr) {
      plan->rows = rows_outside_ ? 0 : plan->out_height;
      plan->chain_columns = RoundUp(plan->image_row_words, kChainColumns);
      plan->image_row_words = kChainLead + plan->chain_columns * (p.kernel_height + 1);
      plan->runs.push_back({0, k_words_});
    } else {
      FindRuns(plan);
    }
    const int64_t row_bytes = plan->image_row_words * 4;
    if (chain_row_ != nullptr && rows_outside_) {
      plan->scratch_bytes = Aligned(row_bytes);
    } else if (plan->copies || chain_row_ != nullptr || Pairs()) {
      if (row_bytes > kMaxBytes / plan->rows / p.batch) return "the padded input is too large";
      plan->copy_bytes = Aligned(p.batch * plan->rows * row_bytes);
    }
    error = MakeBase(plan);
    if (kernel_.scratch_bytes != nullptr) {
      plan->scratch_bytes = Aligned(kernel_.scratch_bytes(plan->strip_rows * plan->out_width, k_words_));
    }
    int64_t aside = 0;  // elements of a strip that is not stored right away
    if (merges_bits_) aside = plan->strip_rows * plan->out_width * WordsFor(kernel_.block);
    if (has_tail_) aside = plan->strip_rows * plan->out_width * std::min(kernel_.block, group_outputs_);
    plan->piece_bytes = plan->scratch_bytes + Aligned(aside * 4);
    if (Pairs()) plan->piece_bytes = std::max(plan->piece_bytes, Aligned(2 * LineWords(*plan) * 4));
    if (error.empty() && plan->piece_bytes > kMaxBytes / kMaxPieces) error = "one output row is too wide";
    return error;
  }

  // Words of neighbouring taps are neighbours in the image too, with dilation 1 and one group; rows are if the window
  // is as wide as the image.
  void FindRuns(Plan* plan) const {
    const BConv2dParams& p = plan->params;
    const int64_t in_words = p.InWords(), tap_words = p.FilterWords();
    for (int64_t ky = 0; ky < p.kernel_height; ++ky) {
      for (int64_t kx = 0; kx < p.kernel_width; ++kx) {
        const int64_t offset =
            ky * p.dilation_height * plan->image_row_words + kx * p.dilation_width * in_words * ReadWords();
        if (!plan->runs.empty() && plan->runs.back().offset + plan->runs.back().words * ReadWords() == offset) {
          plan->runs.back().words += tap_words;
        } else {
          plan->runs.push_back({offset, tap_words});
        }
      }
    }
  }

  std::string MakeBase(Plan* plan) const {
    const BConv2dParams& p = plan->params;
    const bool zero_padding = p.pad_value == 0 && plan->copies;
    const int64_t no_pad = 0, one = 1;
    // Without zero-padding all pixels are alike: one class, made from a window that is inside.
    const BorderClasses rows =
        zero_padding ? BorderClasses(plan->out_height, p.stride_height, p.pad_top, p.dilation_height, p.in_height,
                                     p.kernel_height)
                     : BorderClasses(plan->out_height, no_pad, no_pad, one, p.kernel_height, p.kernel_height);
    const BorderClasses columns =
        zero_padding ? BorderClasses(plan->out_width, p.stride_width, p.pad_left, p.dilation_width, p.in_width,
                                     p.kernel_width)
                     : BorderClasses(plan->out_width, no_pad, no_pad, one, p.kernel_width, p.kernel_width);
    const int64_t column_classes = static_cast<int64_t>(columns.taps.size());
    const int64_t row_entries = column_classes * padded_channels_;
    if (static_cast<int64_t>(rows.taps.size()) > kMaxTableEntries / row_entries) return "too many border cases";
    for (const int32_t row : rows.of) plan->row_base.push_back(static_cast<int32_t>(row * row_entries));
    for (const int32_t column : columns.of) {
      plan->column_base.push_back(static_cast<int32_t>(column * padded_channels_));
    }
    const bool bits = transform_.kind == OutputKind::kBits;
    plan->base.assign(rows.taps.size() * static_cast<size_t>(row_entries), bits ? INT32_MAX : 0);
    int32_t* base = plan->base.data();
    for (const TapRange& row : rows.taps) {
      for (const TapRange& column : columns.taps) {
        for (int64_t o = 0; o < p.out_channels; ++o) {
          base[PaddedChannel(o)] = Base(o, zero_padding ? Outside(row, column, o) : 0);
        }
        base += padded_channels_;
      }
    }
    if (!half_multiplier_.empty()) {
      plan->half_base = plan->base;
      for (int32_t& value : plan->half_base) value /= Doubled() ? -2 : 2;
    }
    return {};
  }

  // e of the derivation above.
  int64_t Outside(const TapRange& row, const TapRange& column, int64_t o) const {
    const BConv2dParams& p = plan_.params;
    const int64_t width = p.kernel_width + 1;
    const int32_t* table = bits_.data() + o * (p.kernel_height + 1) * width;
    const auto above_left = [&](int64_t ky, int64_t kx) { return static_cast<int64_t>(table[ky * width + kx]); };
    const int64_t inside = above_left(row.last, column.last) - above_left(row.first, column.last) -
                           above_left(row.last, column.first) + above_left(row.first, column.first);
    const int64_t taps = p.kernel_height * p.kernel_width;
    const int64_t outside_taps = taps - (row.last - row.first) * (column.last - column.first);
    return p.GroupChannels() * outside_taps - 2 * (above_left(p.kernel_height, p.kernel_width) - inside);
  }

  int32_t Base(int64_t o, int64_t outside) const {
    const bool doubled = Doubled();
    const int64_t base = doubled ? outside : products_ - outside;
    if (transform_.kind != OutputKind::kBits) return static_cast<int32_t>(base);
    const int64_t threshold = transform_.threshold[static_cast<size_t>(o)];
    const int64_t limit = FloorHalf(doubled ? threshold - base : base - threshold);
    return static_cast<int32_t>(std::clamp<int64_t>(limit, -1, INT32_MAX));
  }

  // ---- Running ----

  int64_t CopiedRows() const { return plan_.params.batch * plan_.rows; }
  // Of a row of what is copied, those that are in the image.
  int64_t CopiedWords() const {
    const BConv2dParams& p = plan_.params;
    return std::clamp<int64_t>(plan_.columns - p.pad_left, 0, p.in_width) * plan_.in_words;
  }

  uint32_t* ChainedWords(const Job& job, const Row& row) const {
    return reinterpret_cast<uint32_t*>(job.workspace) + row.index * plan_.image_row_words;
  }

  void ChainRows(const Job& job, int64_t first, int64_t last) const {
    Row row{first, first / plan_.out_height, first % plan_.out_height};
    for (; row.index < last; Advance(&row)) ChainRow(job, row, ChainedWords(job, row));
  }

  void ChainRow(const Job& job, const Row& row, uint32_t* to) const {
    const BConv2dParams& p = plan_.params;
    const int64_t words = plan_.in_words;
    ChainedRow chain{};
    chain.left = p.pad_left * words;
    chain.inside = CopiedWords();
    chain.columns = plan_.columns * words;
    int64_t y = row.y * p.stride_height - p.pad_top;
    for (int64_t r = 0; r < p.kernel_height; ++r, y += p.dilation_height) {
      const bool inside = y >= 0 && y < p.in_height;
      chain.rows[r] = inside ? job.tensors->input + (row.image * p.in_height + y) * p.in_width * words : nullptr;
    }
    chain.chained = to + kChainLead;
    chain.ones = reinterpret_cast<int32_t*>(chain.chained) + plan_.chain_columns * p.kernel_height;
    chain_row_(chain);
  }

  void CopyRows(const Job& job, int64_t piece) const {
    const int64_t rows = CopiedRows(), last = rows * (piece + 1) / job.copy_pieces;
    for (int64_t row = rows * piece / job.copy_pieces; row < last; ++row) {
      uint32_t* const to = reinterpret_cast<uint32_t*>(job.workspace) + row * plan_.image_row_words;
      CopyRow(job, row / plan_.rows, row % plan_.rows, to);
    }
  }

  // With its borders; a row outside of the image is all border.
  void CopyRow(const Job& job, int64_t image, int64_t row, uint32_t* to) const {
    const BConv2dParams& p = plan_.params;
    const int64_t words = plan_.in_words, copied = CopiedWords(), y = row - p.pad_top;
    uint32_t* const end = to + plan_.columns * words;
    if (y >= 0 && y < p.in_height && copied > 0) {
      const uint32_t* const from = job.tensors->input + (image * p.in_height + y) * p.in_width * words;
      to = std::fill_n(to, p.pad_left * words, 0u);
      to = std::copy(from, from + copied, to);
    }
    std::fill(to, end, 0u);
  }

  // A row with its borders, and what the last pixels have for partners.
  static int64_t LineWords(const Plan& plan) {
    return (plan.columns + plan.params.stride_width) * plan.in_words;
  }

  void PairRows(const Job& job, int64_t piece) const {
    const BConv2dParams& p = plan_.params;
    const int64_t row_words = plan_.columns * plan_.in_words, step = p.stride_width * plan_.in_words;
    uint32_t* const line = reinterpret_cast<uint32_t*>(Scratch(job, piece));
    uint32_t* const next_line = line + LineWords(plan_);
    std::fill_n(line + row_words, step, 0u);
    const int64_t rows = CopiedRows(), last = rows * (piece + 1) / job.copy_pieces;
    for (int64_t index = rows * piece / job.copy_pieces; index < last; ++index) {
      const int64_t image = index / plan_.rows, row = index % plan_.rows;
      uint32_t* const to = reinterpret_cast<uint32_t*>(job.workspace) + index * plan_.image_row_words;
      CopyRow(job, image, row, line);
      kernel_.pair_words(line, line + step, row_words, to);
      if (plan_.wrap_words == 0) continue;
      CopyRow(job, image, row + p.stride_height, next_line);
      const uint32_t* const last_window = line + (plan_.out_width - 1) * step;
      kernel_.pair_words(last_window, next_line, plan_.wrap_words, to + row_words * kPairWords);
    }
  }

  // The split into row ranges x block ranges, at most one piece per thread, whose largest piece is smallest. Blocks are
  // not split where two of them write bits of one word.
  void ChoosePieces(int64_t threads, Job* job) const {
    const int64_t rows = plan_.params.batch * plan_.out_height;
    const int64_t pieces = std::min(threads, kMaxPieces);
    int64_t best = -1;
    for (int64_t blocks = 1; blocks <= (merges_bits_ ? 1 : std::min(pieces, block_count_)); ++blocks) {
      const int64_t row_pieces = std::min(pieces / blocks, rows);
      const int64_t largest = CeilDiv(rows, row_pieces) * CeilDiv(block_count_, blocks);
      if (best >= 0 && largest >= best) continue;
      best = largest;
      job->row_pieces = row_pieces;
      job->block_pieces = blocks;
    }
  }

  void RunPiece(const Job& job, int64_t piece) const {
    const int64_t rows = plan_.params.batch * plan_.out_height;
    const int64_t row_piece = piece % job.row_pieces, block_piece = piece / job.row_pieces;
    const int64_t first_row = rows * row_piece / job.row_pieces;
    const int64_t last_row = rows * (row_piece + 1) / job.row_pieces;
    const Block* first_block = blocks_.data() + block_count_ * block_piece / job.block_pieces;
    const Block* last_block = blocks_.data() + block_count_ * (block_piece + 1) / job.block_pieces;
    unsigned char* scratch = Scratch(job, piece);
    if (merges_bits_) ClearBits(job, first_row, last_row);
    ConvStrip strip = PieceStrip(scratch);
    Row row{first_row, first_row / plan_.out_height, first_row % plan_.out_height};
    if (rows_outside_) {
      for (; row.index < last_row; Advance(&row)) {
        if (chain_row_ != nullptr) ChainRow(job, row, reinterpret_cast<uint32_t*>(scratch));
        for (const Block* block = first_block; block < last_block; ++block) {
          strip.new_input = block == first_block || block->starts_group;
          RunStrip(job, row, *block, &strip);
        }
      }
      return;
    }
    if (chain_row_ != nullptr && job.block_pieces == 1) ChainRows(job, first_row, last_row);
    strip.new_input = true;
    // Image by image: what is read of it is small and stays in the cache while the blocks go over it.
    while (row.index < last_row) {
      const Row first = row;
      const int64_t end = std::min(last_row, row.index - row.y + plan_.out_height);
      for (const Block* block = first_block; block < last_block; ++block) {
        for (row = first; row.index < end; Advance(&row, strip.rows)) {
          strip.rows = std::min(plan_.strip_rows, end - row.index);
          RunStrip(job, row, *block, &strip);
        }
      }
    }
  }

  // What all strips of a piece have in common.
  ConvStrip PieceStrip(unsigned char* scratch) const {
    const BConv2dParams& p = plan_.params;
    ConvStrip strip{};
    strip.pixels = plan_.out_width;
    strip.pixel_step = p.stride_width * plan_.in_words * ReadWords();
    strip.rows = 1;
    strip.row_step = p.stride_height * plan_.image_row_words;
    strip.wrap = plan_.columns * plan_.in_words * ReadWords();
    if (chain_row_ != nullptr) {
      strip.ones_step = strip.pixel_step;
      strip.pixel_step *= p.kernel_height;
    }
    strip.runs = plan_.runs.data();
    strip.run_count = static_cast<int64_t>(plan_.runs.size());
    strip.k_words = k_words_;
    strip.scratch = scratch;
    strip.kind = transform_.kind;
    strip.base_offset = plan_.column_base.data();
    strip.doubled = Doubled() ? 2 : -2;
    strip.clamps = Clamps();
    strip.clamp_low = transform_.clamp_low;
    strip.clamp_high = transform_.clamp_high;
    strip.out_pixel_step = transform_.kind == OutputKind::kBits ? WordsFor(p.out_channels) : p.out_channels;
    strip.out_channel_step = 1;
    if (transform_.layout == Layout::kNchw) {
      strip.out_pixel_step = 1;
      strip.out_channel_step = plan_.out_height * plan_.out_width;
    }
    return strip;
  }

  // Sets what PieceStrip left open. No divisions here: strips are short.
  void RunStrip(const Job& job, const Row& row, const Block& block, ConvStrip* to) const {
    ConvStrip& strip = *to;
    const BConv2dParams& p = plan_.params;
    if (chain_row_ != nullptr) {
      strip.input = (rows_outside_ ? static_cast<const uint32_t*>(strip.scratch) : ChainedWords(job, row)) + kChainLead;
      strip.ones = reinterpret_cast<const int32_t*>(strip.input) + plan_.chain_columns * p.kernel_height;
    } else {
      strip.input = job.image + (row.image * plan_.rows + row.y * p.stride_height) * plan_.image_row_words +
                    block.group_word * ReadWords();
    }
    strip.weights = weights_.get() + block.index * block_bytes_;
    strip.channels = block.channels;
    const int64_t padded_first = block.index * kernel_.block;
    strip.row_base = plan_.row_base.data() + row.y;
    const int64_t first_base = (Pairs() ? 0 : *strip.row_base) + padded_first;
    strip.base = plan_.base.data() + first_base;
    if (!multiplier_.empty()) {
      strip.multiplier = multiplier_.data() + padded_first;
      strip.bias = bias_.data() + padded_first;
    }
    if (!half_multiplier_.empty()) {
      strip.half_base = plan_.half_base.data() + first_base;
      strip.half_multiplier = half_multiplier_.data() + padded_first;
    }
    const int64_t first_pixel = row.index * plan_.out_width;
    unsigned char* aside = static_cast<unsigned char*>(strip.scratch) + plan_.scratch_bytes;
    if (has_tail_) {
      RunWithTail(job, &strip, aside, first_pixel, block.first_channel);
    } else if (merges_bits_) {
      RunMerged(job, &strip, aside, first_pixel, block.first_channel);
    } else {
      strip.output = Output(job, row, block, strip);
      kernel_.run(strip);
    }
  }

  void* Output(const Job& job, const Row& row, const Block& block, const ConvStrip& strip) const {
    const int64_t first_pixel = row.index * plan_.out_width;
    int64_t element = first_pixel * strip.out_pixel_step + block.first_channel;
    if (transform_.layout == Layout::kNchw) {
      element = (row.image * plan_.params.out_channels + block.first_channel) * strip.out_channel_step +
                row.y * plan_.out_width;
    }
    if (transform_.kind == OutputKind::kInt8) return static_cast<int8_t*>(job.tensors->output) + element;
    if (transform_.kind == OutputKind::kBits) {
      return static_cast<uint32_t*>(job.tensors->output) + first_pixel * strip.out_pixel_step +
             block.first_channel / kWordBits;
    }
    return static_cast<float*>(job.tensors->output) + element;  // or int32_t
  }

  void ClearBits(const Job& job, int64_t first_row, int64_t last_row) const {
    const int64_t row_words = plan_.out_width * WordsFor(plan_.params.out_channels);
    std::fill_n(static_cast<uint32_t*>(job.tensors->output) + first_row * row_words, (last_row - first_row) * row_words, 0u);
  }

  // If the kernel leaves the tail to `finish`, the strip's values go aside, into the first cache, and from there through
  // the tail.
  void RunWithTail(const Job& job, ConvStrip* strip, unsigned char* aside, int64_t first_pixel,
                   int64_t first_channel) const {
    const Tail& tail = transform_.tail;
    const int64_t out_channels = plan_.params.out_channels, out_words = WordsFor(out_channels);
    const int64_t first = first_pixel * out_channels + first_channel;
    const auto from = [first_channel](const std::vector<float>& values) {
      return values.empty() ? nullptr : values.data() + first_channel;
    };
    TailStrip rest{};
    rest.values = reinterpret_cast<const float*>(aside);
    rest.value_step = strip->channels;
    rest.pixels = strip->rows * strip->pixels;
    rest.channels = strip->channels;
    if (tail.adds_residual) rest.residual = job.tensors->residual + first;
    rest.output = static_cast<float*>(job.tensors->output) + first;
    rest.pixel_step = out_channels;
    if (tail.writes_bits) rest.bits = job.tensors->bits + first_pixel * out_words + first_channel / kWordBits;
    rest.bits_step = out_words;
    rest.slope = from(tail.slope);
    rest.offset = from(tail.offset);
    rest.limit = from(tail.limit);
    rest.low = tail.low;
    rest.high = tail.high;
    if (kernel_.does_tails && strip->channels == kernel_.block && rest.slope == nullptr && rest.offset == nullptr) {
      strip->output = rest.output;
      strip->tail = &rest;
      kernel_.run(*strip);
      return;
    }
    strip->output = aside;
    strip->out_pixel_step = strip->channels;
    strip->tail = nullptr;
    kernel_.run(*strip);
    kernel_.finish(rest);
  }

  // Groups whose outputs do not fill whole words: the strip's bits go aside first, then shifted into place.
  void RunMerged(const Job& job, ConvStrip* strip, unsigned char* aside, int64_t first_pixel,
                 int64_t first_channel) const {
    const int64_t strip_words = WordsFor(strip->channels), out_words = WordsFor(plan_.params.out_channels);
    const int64_t first_word = first_channel / kWordBits, shift = first_channel % kWordBits;
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(aside);
    strip->output = aside;
    strip->out_pixel_step = strip_words;
    kernel_.run(*strip);
    uint32_t* pixel = static_cast<uint32_t*>(job.tensors->output) + first_pixel * out_words;
    for (int64_t i = 0; i < strip->rows * strip->pixels; ++i, pixel += out_words) {
      for (int64_t w = 0; w < strip_words; ++w) {
        const uint32_t word = *bits++;
        pixel[first_word + w] |= word << shift;
        if (shift > 0 && word >> (kWordBits - shift) != 0) pixel[first_word + w + 1] |= word >> (kWordBits - shift);
      }
    }
  }

  unsigned char* Scratch(const Job& job, int64_t piece) const {
    return job.workspace + plan_.copy_bytes + piece * plan_.piece_bytes;
  }

  bool Pairs() const { return kernel_.pair_words != nullptr; }
  // Words of what the kernel reads for each of the image.
  int64_t ReadWords() const { return Pairs() ? kPairWords : 1; }
  bool Doubled() const { return transform_.domain == Domain::kDoubledPopcount; }
  bool Clamps() const {
    return transform_.clamp_low > (Doubled() ? 0 : -products_) ||
           transform_.clamp_high < (Doubled() ? 2 * products_ : products_);
  }
  bool CanHalve() const {
    const bool scales = transform_.kind == OutputKind::kFloat || transform_.kind == OutputKind::kInt8;
    using Limits = std::numeric_limits<float>;
    const auto doubles = [](float value) {
      return value == 0.0f || (std::abs(value) >= Limits::min() && std::abs(value) <= Limits::max() / 2);
    };
    return scales && plan_.params.GroupChannels() % 2 == 0 && !Clamps() &&
           std::all_of(multiplier_.begin(), multiplier_.end(), doubles);
  }

  const ConvKernel& kernel_;
  Transform transform_;
  const int64_t products_;  // K
  const int64_t k_words_, group_outputs_, group_blocks_, block_count_;
  const int64_t padded_channels_;  // each group's output channels rounded up to whole blocks
  const ChainRowFunction chain_row_;  // nullptr: plain words
  const bool merges_bits_, has_tail_;
  bool rows_outside_ = false;
  int64_t block_bytes_ = 0;
  AlignedBytes weights_;
  std::vector<Block> blocks_;
  std::vector<int32_t> bits_;
  std::vector<float> multiplier_, bias_, half_multiplier_;  // [padded channels], or empty
  Plan plan_;
};

}  // namespace

bool Tail::IsEmpty() const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return !adds_residual && slope.empty() && offset.empty() && low == -kInfinity && high == kInfinity && !writes_bits;
}

std::unique_ptr<Conv> Conv::Create(const BConv2dParams& params, const uint32_t* filter, const Transform& transform,
                                   const char* kernel, std::string* error) {
  BConv2dSizes sizes{};
  *error = CheckBConv2d(params, &sizes);
  if (error->empty()) *error = CheckTransform(transform, params);
  if (!error->empty()) return nullptr;
  const char* name = SelectConvKernel(kernel, error);
  if (name == nullptr) return nullptr;
  const ConvKernel* table = FindConvKernel(name);
  if (table == nullptr) return MakeReferenceConv(params, filter, transform);
  auto conv = std::make_unique<PackedConv>(*table, params, filter, transform);
  *error = conv->Resize(params.batch, params.in_height, params.in_width);
  if (!error->empty()) return nullptr;
  return conv;
}

Parallel Sequential() {
  const auto run = [](void*, int64_t count, void (*piece)(void*, int64_t), void* context) {
    for (int64_t i = 0; i < count; ++i) piece(context, i);
  };
  return {run, nullptr, 1};
}

}  // namespace bnnedge
