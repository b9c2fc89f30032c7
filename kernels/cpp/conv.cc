// A convolution on a ConvKernel: how a run is cut into pieces for threads, and those into strips for the kernel.
#include "bnnedge/conv.h"

#include <algorithm>
#include <utility>

#include "bnnedge/rounding.h"
#include "conv_check.h"
#include "conv_filter.h"
#include "conv_input.h"
#include "conv_plan.h"
#include "reference/conv_reference.h"
#include "tail.h"

namespace bnnedge {
namespace {

// A copy below this many words is made by the caller's thread alone: waking others takes longer.
constexpr int64_t kParallelCopyWords = 64 * 1024;

class KernelConv : public Conv {
 public:
  KernelConv(const ConvKernel& kernel, const BConv2dParams& params, const uint32_t* filter,
             const OutputTransform& transform)
      : filter_(kernel, params, filter, transform) {
    plan_.params = params;
  }

  std::string Resize(int64_t batch, int64_t height, int64_t width) override {
    BConv2dParams params = plan_.params;
    params.batch = batch;
    params.in_height = height;
    params.in_width = width;
    ConvPlan next;
    std::string error = MakeConvPlan(filter_, params, &next);
    if (error.empty()) plan_ = std::move(next);
    return error;
  }

  const BConv2dParams& params() const override { return plan_.params; }
  const char* kernel_name() const override { return filter_.kernel.name; }
  int64_t WorkspaceBytes() const override { return plan_.copy_bytes + kMaxPieces * plan_.piece_bytes; }

  void Run(const ConvTensors& tensors, void* workspace, const Parallel& parallel) const override {
    Job job{};
    job.conv = this;
    job.tensors = &tensors;
    job.workspace = static_cast<unsigned char*>(workspace);
    job.image = plan_.copy_bytes > 0 ? reinterpret_cast<const uint32_t*>(job.workspace) : tensors.input;
    const int64_t threads = std::max(1, parallel.threads);
    ChoosePieces(threads, &job);
    if (filter_.chain_row != nullptr) {
      // Each piece of rows chains its own; where several pieces share rows, the caller's thread does, as rows are few.
      if (!filter_.rows_are_outside && job.block_pieces > 1) {
        ChainRows(job, 0, plan_.params.batch * plan_.out_height);
      }
    } else if (plan_.copy_bytes > 0) {
      const int64_t pieces = std::min({threads, kMaxPieces, ImageRows()});
      job.copy_pieces = plan_.copy_bytes / 4 < kParallelCopyWords ? 1 : pieces;
      RunPieces(
          parallel, job.copy_pieces,
          [](void* context, int64_t i) {
            const Job& j = *static_cast<const Job*>(context);
            j.conv->MakeImage(j, i);
          },
          &job);
    }
    RunPieces(
        parallel, job.row_pieces * job.block_pieces,
        [](void* context, int64_t i) {
          const Job& j = *static_cast<const Job*>(context);
          j.conv->RunPiece(j, i);
        },
        &job);
  }

 private:
  struct Job {
    const KernelConv* conv;
    const ConvTensors* tensors;
    const uint32_t* image;  // what the kernel reads: chained words, a copy, or the caller's image
    unsigned char* workspace;
    int64_t copy_pieces, row_pieces, block_pieces;
  };

  static void RunPieces(const Parallel& parallel, int64_t count, void (*piece)(void*, int64_t), Job* job) {
    if (count > 1) {
      parallel.run(parallel.host, count, piece, job);
    } else {
      piece(job, 0);
    }
  }

  // Splits the work into row ranges x block ranges, at most one piece a thread, such that the largest piece is as small
  // as can be. Blocks are not split where two of them write bits of one word.
  void ChoosePieces(int64_t threads, Job* job) const {
    const int64_t rows = plan_.params.batch * plan_.out_height, block_count = filter_.block_count;
    const int64_t pieces = std::min(threads, kMaxPieces);
    int64_t best = -1;
    for (int64_t blocks = 1; blocks <= (filter_.merges_bits ? 1 : std::min(pieces, block_count)); ++blocks) {
      const int64_t row_pieces = std::min(pieces / blocks, rows);
      const int64_t largest = CeilDiv(rows, row_pieces) * CeilDiv(block_count, blocks);
      if (best >= 0 && largest >= best) continue;
      best = largest;
      job->row_pieces = row_pieces;
      job->block_pieces = blocks;
    }
  }

  // ---- The image that the kernel reads ----

  int64_t ImageRows() const { return plan_.params.batch * plan_.rows; }

  void MakeImage(const Job& job, int64_t piece) const {
    const int64_t rows = ImageRows();
    const int64_t first = rows * piece / job.copy_pieces, last = rows * (piece + 1) / job.copy_pieces;
    auto* const to = reinterpret_cast<uint32_t*>(job.workspace);
    if (filter_.ReadsPairs()) {
      auto* const lines = reinterpret_cast<uint32_t*>(Scratch(job, piece));
      PairRows(plan_, filter_.kernel, job.tensors->input, first, last, lines, to);
    } else {
      CopyRows(plan_, job.tensors->input, first, last, to);
    }
  }

  uint32_t* ChainedWords(const Job& job, const OutputRow& row) const {
    return reinterpret_cast<uint32_t*>(job.workspace) + row.index * plan_.image_row_words;
  }

  void ChainRows(const Job& job, int64_t first, int64_t last) const {
    for (OutputRow row = plan_.RowAt(first); row.index < last; plan_.Advance(&row)) {
      ChainRow(plan_, filter_.chain_row, job.tensors->input, row, ChainedWords(job, row));
    }
  }

  // ---- Strips ----

  void RunPiece(const Job& job, int64_t piece) const {
    const int64_t rows = plan_.params.batch * plan_.out_height;
    const int64_t row_piece = piece % job.row_pieces, block_piece = piece / job.row_pieces;
    const int64_t first_row = rows * row_piece / job.row_pieces;
    const int64_t last_row = rows * (row_piece + 1) / job.row_pieces;
    const ChannelBlock* const blocks = filter_.blocks.data();
    const ChannelBlock* const first_block = blocks + filter_.block_count * block_piece / job.block_pieces;
    const ChannelBlock* const last_block = blocks + filter_.block_count * (block_piece + 1) / job.block_pieces;
    unsigned char* const scratch = Scratch(job, piece);
    if (filter_.merges_bits) ClearBits(job, first_row, last_row);
    ConvStrip strip = PieceStrip(scratch);
    OutputRow row = plan_.RowAt(first_row);
    if (filter_.rows_are_outside) {
      for (; row.index < last_row; plan_.Advance(&row)) {
        if (filter_.chain_row != nullptr) {
          ChainRow(plan_, filter_.chain_row, job.tensors->input, row, reinterpret_cast<uint32_t*>(scratch));
        }
        for (const ChannelBlock* block = first_block; block < last_block; ++block) {
          strip.new_input = block == first_block || block->starts_group;
          RunStrip(job, row, *block, &strip);
        }
      }
      return;
    }
    if (filter_.chain_row != nullptr && job.block_pieces == 1) ChainRows(job, first_row, last_row);
    strip.new_input = true;
    // One image after another: what is read of it is small and stays in the cache while the blocks go over it.
    while (row.index < last_row) {
      const OutputRow first = row;
      const int64_t end = std::min(last_row, row.index - row.y + plan_.out_height);
      for (const ChannelBlock* block = first_block; block < last_block; ++block) {
        for (row = first; row.index < end; plan_.Advance(&row, strip.rows)) {
          strip.rows = std::min(plan_.strip_rows, end - row.index);
          RunStrip(job, row, *block, &strip);
        }
      }
    }
  }

  // A strip with the fields that all strips of a piece have in common.
  ConvStrip PieceStrip(unsigned char* scratch) const {
    const BConv2dParams& p = plan_.params;
    const OutputTransform& transform = filter_.transform;
    const int64_t read_words = filter_.ReadWords();
    ConvStrip strip{};
    strip.pixels = plan_.out_width;
    strip.pixel_step = p.stride_width * plan_.in_words * read_words;
    strip.rows = 1;
    strip.row_step = p.stride_height * plan_.image_row_words;
    strip.wrap = plan_.columns * plan_.in_words * read_words;
    if (filter_.chain_row != nullptr) {
      strip.ones_step = strip.pixel_step;
      strip.pixel_step *= p.kernel_height;
    }
    strip.runs = plan_.runs.data();
    strip.run_count = static_cast<int64_t>(plan_.runs.size());
    strip.k_words = filter_.k_words;
    strip.scratch = scratch;
    strip.kind = transform.kind;
    strip.base_offset = plan_.column_base.data();
    strip.doubled = filter_.IsDoubledPopcount() ? 2 : -2;
    strip.clamps = filter_.Clamps();
    strip.clamp_low = transform.clamp_low;
    strip.clamp_high = transform.clamp_high;
    strip.out_pixel_step = transform.kind == OutputKind::kBits ? WordsFor(p.out_channels) : p.out_channels;
    strip.out_channel_step = 1;
    if (transform.layout == Layout::kNchw) {
      strip.out_pixel_step = 1;
      strip.out_channel_step = plan_.out_height * plan_.out_width;
    }
    return strip;
  }

  // Sets the fields that PieceStrip leaves open. There are no divisions here, as strips are short.
  void RunStrip(const Job& job, const OutputRow& row, const ChannelBlock& block, ConvStrip* to) const {
    ConvStrip& strip = *to;
    const BConv2dParams& p = plan_.params;
    if (filter_.chain_row != nullptr) {
      const auto* const own = static_cast<const uint32_t*>(strip.scratch);
      strip.input = (filter_.rows_are_outside ? own : ChainedWords(job, row)) + kChainLead;
      strip.ones = reinterpret_cast<const int32_t*>(strip.input) + plan_.chain_columns * p.kernel_height;
    } else {
      strip.input = job.image + (row.image * plan_.rows + row.y * p.stride_height) * plan_.image_row_words +
                    block.group_word * filter_.ReadWords();
    }
    strip.weights = filter_.weights.get() + block.index * filter_.block_bytes;
    strip.channels = block.channels;
    const int64_t padded_first = block.index * filter_.kernel.block;
    strip.row_base = plan_.row_base.data() + row.y;
    const int64_t first_base = (filter_.ReadsPairs() ? 0 : *strip.row_base) + padded_first;
    strip.base = plan_.base.data() + first_base;
    if (!filter_.multiplier.empty()) {
      strip.multiplier = filter_.multiplier.data() + padded_first;
      strip.bias = filter_.bias.data() + padded_first;
    }
    if (!filter_.half_multiplier.empty()) {
      strip.half_base = plan_.half_base.data() + first_base;
      strip.half_multiplier = filter_.half_multiplier.data() + padded_first;
    }
    const int64_t first_pixel = row.index * plan_.out_width;
    unsigned char* const aside = static_cast<unsigned char*>(strip.scratch) + plan_.scratch_bytes;
    if (filter_.has_tail) {
      RunWithTail(job, &strip, aside, first_pixel, block.first_channel);
    } else if (filter_.merges_bits) {
      RunMerged(job, &strip, aside, first_pixel, block.first_channel);
    } else {
      strip.output = Output(job, row, block, strip);
      filter_.kernel.run(strip);
    }
  }

  void* Output(const Job& job, const OutputRow& row, const ChannelBlock& block, const ConvStrip& strip) const {
    const OutputTransform& transform = filter_.transform;
    const int64_t first_pixel = row.index * plan_.out_width;
    int64_t element = first_pixel * strip.out_pixel_step + block.first_channel;
    if (transform.layout == Layout::kNchw) {
      element = (row.image * plan_.params.out_channels + block.first_channel) * strip.out_channel_step +
                row.y * plan_.out_width;
    }
    if (transform.kind == OutputKind::kInt8) return static_cast<int8_t*>(job.tensors->output) + element;
    if (transform.kind == OutputKind::kBits) {
      return static_cast<uint32_t*>(job.tensors->output) + first_pixel * strip.out_pixel_step +
             block.first_channel / kWordBits;
    }
    return static_cast<float*>(job.tensors->output) + element;  // or int32_t
  }

  void ClearBits(const Job& job, int64_t first_row, int64_t last_row) const {
    const int64_t row_words = plan_.out_width * WordsFor(plan_.params.out_channels);
    uint32_t* const first = static_cast<uint32_t*>(job.tensors->output) + first_row * row_words;
    std::fill_n(first, (last_row - first_row) * row_words, 0u);
  }

  // A kernel that does not fuse the tail writes the strip's values aside, into the first-level cache, from where its
  // `run_tail` takes them.
  void RunWithTail(const Job& job, ConvStrip* strip, unsigned char* aside, int64_t first_pixel,
                   int64_t first_channel) const {
    const ConvKernel& kernel = filter_.kernel;
    const Tail& tail = filter_.transform.tail;
    const int64_t out_channels = plan_.params.out_channels, out_words = WordsFor(out_channels);
    const int64_t first = first_pixel * out_channels + first_channel;
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
    SetTail(tail, first_channel, &rest);
    if (kernel.fuses_tail && strip->channels == kernel.block && rest.slope == nullptr && rest.offset == nullptr) {
      strip->output = rest.output;
      strip->tail = &rest;
      kernel.run(*strip);
      return;
    }
    strip->output = aside;
    strip->out_pixel_step = strip->channels;
    strip->tail = nullptr;
    kernel.run(*strip);
    kernel.run_tail(rest);
  }

  // The outputs of a group do not fill whole words: the kernel writes the strip's bits aside, and they are shifted into
  // place.
  void RunMerged(const Job& job, ConvStrip* strip, unsigned char* aside, int64_t first_pixel,
                 int64_t first_channel) const {
    const int64_t strip_words = WordsFor(strip->channels), out_words = WordsFor(plan_.params.out_channels);
    const int64_t first_word = first_channel / kWordBits, shift = first_channel % kWordBits;
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(aside);
    strip->output = aside;
    strip->out_pixel_step = strip_words;
    filter_.kernel.run(*strip);
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

  const ConvFilter filter_;
  ConvPlan plan_;
};

}  // namespace

std::unique_ptr<Conv> Conv::Create(const BConv2dParams& params, const uint32_t* filter,
                                   const OutputTransform& transform, const char* kernel, std::string* error) {
  BConv2dSizes sizes{};
  *error = CheckBConv2d(params, &sizes);
  if (error->empty()) *error = CheckOutputTransform(transform, params);
  if (!error->empty()) return nullptr;
  const char* name = SelectConvKernel(kernel, error);
  if (name == nullptr) return nullptr;
  const ConvKernel* table = FindConvKernel(name);
  if (table == nullptr) return MakeReferenceConv(params, filter, transform);
  auto conv = std::make_unique<KernelConv>(*table, params, filter, transform);
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
