// A stem on the kernel of an instruction set; bnnedge/stem.h says what is computed and how its steps are fused.
#include "bnnedge/stem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "bnnedge/aligned.h"
#include "bnnedge/rounding.h"
#include "bnnedge/stem_kernel.h"
#include "reference/stem_reference.h"
#include "stem_check.h"
#include "tail.h"
#include "workspace.h"

namespace bnnedge {
namespace {

// A run is cut into so many pieces at most, however many threads the host has; each has scratch in the workspace.
constexpr int64_t kMaxPieces = 32;
// A piece has so many products at least: fewer are not worth another thread.
constexpr int64_t kPieceProducts = int64_t{1} << 20;
// A piece has so many rows of the pool at least, because both pieces at a cut compute the convolution's rows that they
// share.
constexpr int64_t kPieceRows = 4;
constexpr int32_t kByteOfCode = 128;  // byte u of code q is q + 128

// ---- Filters ----

// The filters as they apply to the image before it is folded, trimmed of the taps around them that are 0 for all
// outputs.
struct PlainFilter {
  int64_t outputs, channels;
  int64_t kernel[2], strides[2];
  int64_t start[2];          // where the first window begins in the image; below 0 in the border
  std::vector<int8_t> taps;  // [outputs][kernel][kernel][channels]

  PlainFilter(const StemParams& p, const int8_t* filter) : outputs(p.out_channels), channels(p.channels) {
    for (int axis = 0; axis < 2; ++axis) {
      kernel[axis] = p.fold * p.conv.kernel[axis];
      strides[axis] = p.fold * p.conv.strides[axis];
      start[axis] = -p.fold * p.conv.pads[axis];
    }
    taps.resize(static_cast<size_t>(outputs * kernel[0] * kernel[1] * channels));
    for (int64_t row = 0; row < outputs * kernel[0]; ++row) {
      const int64_t o = row / kernel[0], y = row % kernel[0];
      for (int64_t x = 0; x < kernel[1]; ++x) {
        const int64_t pixel = (o * p.conv.kernel[0] + y / p.fold) * p.conv.kernel[1] + x / p.fold;
        const int64_t phase = p.fold * (y % p.fold) + x % p.fold;
        const int8_t* const from = filter + (pixel * p.fold * p.fold + phase) * channels;
        std::copy(from, from + channels, taps.data() + (row * kernel[1] + x) * channels);
      }
    }
    Trim();
  }

  const int8_t* Tap(int64_t o, int64_t y, int64_t x) const {
    return taps.data() + ((o * kernel[0] + y) * kernel[1] + x) * channels;
  }

 private:
  void Trim() {
    int64_t first[2] = {kernel[0], kernel[1]}, last[2] = {0, 0};
    for (size_t i = 0; i < taps.size(); ++i) {
      if (taps[i] == 0) continue;
      const int64_t pixel = static_cast<int64_t>(i) / channels;
      const int64_t at[2] = {pixel / kernel[1] % kernel[0], pixel % kernel[1]};
      for (int axis = 0; axis < 2; ++axis) {
        first[axis] = std::min(first[axis], at[axis]);
        last[axis] = std::max(last[axis], at[axis] + 1);
      }
    }
    if (last[0] == 0) first[0] = first[1] = 0, last[0] = last[1] = 1;  // all taps are 0
    std::vector<int8_t> kept;
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t y = first[0]; y < last[0]; ++y) {
        kept.insert(kept.end(), Tap(o, y, first[1]), Tap(o, y, last[1] - 1) + channels);
      }
    }
    taps = std::move(kept);
    for (int axis = 0; axis < 2; ++axis) {
      kernel[axis] = last[axis] - first[axis];
      start[axis] += first[axis];
    }
  }
};

// ---- The stem ----

class KernelStem : public Stem {
 public:
  KernelStem(const StemKernel& kernel, const ConvKernel& tail_kernel, const StemParams& params,
             const StemWeights& weights, const Tail& tail)
      : kernel_(kernel),
        tail_kernel_(tail_kernel),
        p_(params),
        tail_(tail),
        blocks_(CeilDiv(params.out_channels, kStemBlock)),
        padded_(blocks_ * kStemBlock),
        zero_byte_(params.source.zero_point + (kernel.signed_codes ? 0 : kByteOfCode)) {
    const PlainFilter filter(params, weights.filter);
    for (int axis = 0; axis < 2; ++axis) {
      kernel_size_[axis] = filter.kernel[axis];
      strides_[axis] = filter.strides[axis];
      start_[axis] = filter.start[axis];
    }
    shape_ = {blocks_, filter.kernel[0], CeilDiv(filter.kernel[1] * filter.channels, kernel.step_taps),
              filter.strides[1] * filter.channels};
    PackWeights(filter, weights.bias);
    MakeRequantization(weights.filter_scale);
    if (tail_.writes_bits && tail_.limit.empty()) tail_.limit.assign(static_cast<size_t>(p_.out_channels), 0.0f);
  }

  const StemParams& params() const override { return p_; }
  const char* kernel_name() const override { return kernel_.name; }

  std::string Fit(StemSize* size) const override {
    std::string error = FitStem(p_, size);
    if (!error.empty()) return error;
    const StemWorkspace places = PlacesOf(*size);
    size->workspace_bytes = places.image_bytes + kMaxPieces * places.piece_bytes;
    const int64_t values = size->batch * (size->in_height * size->in_width * p_.channels +
                                          size->out_height * size->out_width * p_.out_channels);
    if (places.is_too_large || size->workspace_bytes > ProportionateBytes(4 * values)) {
      return "the windows are out of proportion to an input of " + std::to_string(size->in_height) + " x " +
             std::to_string(size->in_width);
    }
    return {};
  }

  void Run(const StemSize& size, const StemTensors& tensors, void* workspace, const Parallel& parallel) const override {
    Job job{&size, &tensors, PlacesOf(size), static_cast<uint8_t*>(workspace), 0, 1, this};
    const int64_t products = size.conv_height * size.conv_width * padded_ * p_.FanIn();
    const int64_t threads = std::min<int64_t>(parallel.threads, kMaxPieces);
    const int64_t rows = p_.pools ? size.out_height / kPieceRows : size.out_height;
    job.pieces = std::max<int64_t>(1, std::min({threads, rows, products / kPieceProducts}));
    for (job.image = 0; job.image < size.batch; ++job.image) {
      if (tensors.quantized != nullptr) WriteQuantized(job);
      InPieces(parallel, &job, [](const Job& its, int64_t piece) { its.stem->QuantizePiece(its, piece); });
      if (tensors.convolved != nullptr) WriteConvolved(job);
      InPieces(parallel, &job, [](const Job& its, int64_t piece) { its.stem->RunPiece(its, piece); });
    }
  }

 private:
  // The sizes of the parts of the workspace. First comes the image of codes with its border, for one image of the batch
  // at a time, then the scratch of each piece. The scratch of a piece holds, one after another: a ring of rows of the
  // convolution, the kernel's own scratch, a row of the pool, a row of floats, and pointers to the ring's rows. While
  // the image of codes is made, the planes of one of its rows lie there instead.
  struct StemWorkspace {
    int64_t rows, columns, row_bytes, image_bytes;
    int64_t ring_rows, ring_bytes, scratch_bytes, pooled_bytes, value_bytes, piece_bytes;
    bool is_too_large;
  };

  struct Job {
    const StemSize* size;
    const StemTensors* tensors;
    StemWorkspace places;
    uint8_t* workspace;
    int64_t image, pieces;
    const KernelStem* stem;
    void (*body)(const Job& job, int64_t piece) = nullptr;

    uint8_t* Scratch(int64_t piece) const { return workspace + places.image_bytes + piece * places.piece_bytes; }
  };

  static void InPieces(const Parallel& parallel, Job* job, void (*body)(const Job&, int64_t)) {
    job->body = body;
    const auto run = [](void* context, int64_t piece) {
      const Job& its = *static_cast<const Job*>(context);
      its.body(its, piece);
    };
    parallel.run(parallel.host, job->pieces, run, job);
  }

  void PackWeights(const PlainFilter& filter, const int32_t* bias) {
    const int64_t row_taps = kernel_.step_taps * shape_.row_steps;
    std::vector<int8_t> flat(static_cast<size_t>(padded_ * kernel_size_[0] * row_taps), int8_t{0});
    base_.assign(static_cast<size_t>(padded_), 0);
    for (int64_t o = 0; o < filter.outputs; ++o) {
      uint32_t sum = 0;
      for (int64_t y = 0; y < kernel_size_[0]; ++y) {
        const int8_t *const from = filter.Tap(o, y, 0), *const end = from + kernel_size_[1] * filter.channels;
        std::copy(from, end, flat.data() + (o * kernel_size_[0] + y) * row_taps);
        for (const int8_t* tap = from; tap < end; ++tap) sum += static_cast<uint32_t>(int32_t{*tap});
      }
      base_[static_cast<size_t>(o)] =
          static_cast<int32_t>(static_cast<uint32_t>(bias[o]) - static_cast<uint32_t>(zero_byte_) * sum);
    }
    weights_ = AllocateAligned(kernel_.packed_bytes(shape_));
    kernel_.pack_weights(flat.data(), shape_, weights_.get());
  }

  void MakeRequantization(const float* filter_scale) {
    const auto channels = static_cast<size_t>(padded_);
    multiplier_.assign(channels, 0.0f);
    mantissa_.assign(channels, 0);
    left_shift_.assign(channels, 0);
    right_shift_.assign(channels, 0);
    for (size_t o = 0; o < static_cast<size_t>(p_.out_channels); ++o) {
      if (p_.arithmetic == Arithmetic::kFloat) {
        multiplier_[o] = FloatMultiplier(p_, filter_scale[o]);
        continue;
      }
      int32_t shift = 0;
      FixedPointMultiplier(p_, filter_scale[o], &mantissa_[o], &shift);
      left_shift_[o] = std::max(shift, 0);
      right_shift_[o] = std::max(-shift, 0);
    }
  }

  StemWorkspace PlacesOf(const StemSize& size) const {
    StemWorkspace at{};
    const int64_t kernel_rows = p_.pools ? p_.pool.kernel[0] : 1;
    at.ring_rows = std::min(kernel_rows, size.conv_height);
    at.rows = BoundedProduct({size.conv_height - 1, strides_[0]}) + kernel_size_[0];
    at.columns = BoundedProduct({size.conv_width - 1, strides_[1]}) + kernel_size_[1];
    at.row_bytes = BoundedProduct({at.columns, p_.channels});
    const int64_t image = BoundedProduct({at.rows, at.row_bytes});
    const int64_t ring = BoundedProduct({at.ring_rows, size.conv_width, padded_});
    const int64_t pooled = BoundedProduct({size.out_width, padded_});
    const int64_t values = BoundedProduct({size.out_width, p_.out_channels, int64_t{sizeof(float)}});
    const int64_t planes = BoundedProduct({size.in_width, p_.channels});
    const int64_t pointers = BoundedProduct({at.ring_rows, int64_t{sizeof(void*)}});
    const int64_t scratch = kernel_.scratch_bytes == nullptr ? 0 : kernel_.scratch_bytes(size.conv_width, shape_);
    for (const int64_t bytes : {image, ring, scratch, pooled, values, planes, pointers}) {
      at.is_too_large |= bytes > kMostStemBytes / kMaxPieces;
    }
    if (at.is_too_large) return at;
    at.image_bytes = Aligned(image + kStemSlack);
    at.ring_bytes = Aligned(ring);
    at.scratch_bytes = Aligned(scratch);
    at.pooled_bytes = Aligned(pooled);
    at.value_bytes = Aligned(values);
    const int64_t rows = at.ring_bytes + at.scratch_bytes + at.pooled_bytes + at.value_bytes + pointers;
    at.piece_bytes = Aligned(std::max(planes, rows));
    return at;
  }

  // ---- Step 2: rows of codes with a border ----

  void QuantizePiece(const Job& job, int64_t piece) const {
    const StemWorkspace& at = job.places;
    const int64_t first = at.rows * piece / job.pieces, last = at.rows * (piece + 1) / job.pieces;
    for (int64_t row = first; row < last; ++row) QuantizeRow(job, row, job.Scratch(piece));
    if (last == at.rows) std::memset(job.workspace + at.rows * at.row_bytes, 0, kStemSlack);
  }

  void QuantizeRow(const Job& job, int64_t row, uint8_t* planes) const {
    const StemSize& size = *job.size;
    const StemWorkspace& at = job.places;
    uint8_t* const to = job.workspace + row * at.row_bytes;
    const int64_t y = row + start_[0];
    // Columns [left, right) of the row are pixels from x on.
    const int64_t left = std::clamp<int64_t>(-start_[1], 0, at.columns), x = std::max<int64_t>(start_[1], 0);
    const bool is_border = y < 0 || y >= size.in_height;
    const int64_t right = is_border ? left : std::clamp(size.in_width - start_[1], left, at.columns);
    std::memset(to, zero_byte_, static_cast<size_t>(left * p_.channels));
    std::memset(to + right * p_.channels, zero_byte_, static_cast<size_t>((at.columns - right) * p_.channels));
    if (left == right) return;
    const int64_t pixels = right - left, plane = size.in_height * size.in_width;
    const float* const image = job.tensors->image + job.image * plane * p_.channels;
    uint8_t* const inside = to + left * p_.channels;
    if (p_.layout == Layout::kNhwc || p_.channels == 1) {
      Quantize(image + (y * size.in_width + x) * p_.channels, pixels * p_.channels, inside);
      return;
    }
    for (int64_t c = 0; c < p_.channels; ++c) {
      Quantize(image + c * plane + y * size.in_width + x, pixels, planes + c * pixels);
    }
    kernel_.interleave(planes, pixels, p_.channels, pixels, inside);
  }

  void Quantize(const float* values, int64_t count, uint8_t* bytes) const {
    kernel_.quantize(values, count, p_.arithmetic, p_.source, bytes);
  }

  // ---- Steps 3 to 6 ----

  void RunPiece(const Job& job, int64_t piece) const {
    const StemSize& size = *job.size;
    const StemWorkspace& at = job.places;
    uint8_t* const scratch = job.Scratch(piece);
    auto* const ring = reinterpret_cast<int8_t*>(scratch);
    uint8_t* const behind = scratch + at.ring_bytes + at.scratch_bytes;
    auto* const pooled = reinterpret_cast<int8_t*>(behind);
    auto* const values = reinterpret_cast<float*>(behind + at.pooled_bytes);
    auto** const rows = reinterpret_cast<const int8_t**>(behind + at.pooled_bytes + at.value_bytes);
    const int64_t first = size.out_height * piece / job.pieces, last = size.out_height * (piece + 1) / job.pieces;
    int64_t next = 0;  // row of the convolution
    for (int64_t y = first; y < last; ++y) {
      const int64_t start = p_.pools ? y * p_.pool.strides[0] - p_.pool.pads[0] : y;
      const int64_t begin = std::max<int64_t>(start, 0);
      const int64_t end = std::min(size.conv_height, start + (p_.pools ? p_.pool.kernel[0] : 1));
      for (int64_t row = begin; row < end; ++row) {
        int8_t* const codes = ring + row % at.ring_rows * size.conv_width * padded_;
        rows[row - begin] = codes;
        if (row >= next) ConvolveRow(job, row, scratch + at.ring_bytes, codes);
      }
      next = std::max(next, end);
      if (p_.pools) PoolRow(size, rows, end - begin, pooled);
      StoreRow(job, y, p_.pools ? pooled : rows[0], values);
    }
  }

  void ConvolveRow(const Job& job, int64_t y, void* scratch, int8_t* codes) const {
    StemRow row{};
    static_cast<StemShape&>(row) = shape_;
    row.input = job.workspace + y * strides_[0] * job.places.row_bytes;
    row.pixels = job.size->conv_width;
    row.row_step = job.places.row_bytes;
    row.weights = weights_.get();
    row.base = base_.data();
    row.codes.arithmetic = p_.arithmetic;
    row.codes.multiplier = multiplier_.data();
    row.codes.mantissa = mantissa_.data();
    row.codes.left_shift = left_shift_.data();
    row.codes.right_shift = right_shift_.data();
    row.codes.zero_point = p_.target.zero_point;
    row.codes.low_code = p_.low_code;
    row.codes.high_code = p_.high_code;
    row.output = codes;
    row.scratch = scratch;
    kernel_.convolve(row);
  }

  void PoolRow(const StemSize& size, const int8_t* const* rows, int64_t count, int8_t* pooled) const {
    StemPoolRow row{};
    row.rows = rows;
    row.row_count = count;
    row.columns = size.conv_width;
    row.kernel = p_.pool.kernel[1];
    row.stride = p_.pool.strides[1];
    row.pad = p_.pool.pads[1];
    row.pixels = size.out_width;
    row.blocks = blocks_;
    row.output = pooled;
    kernel_.pool(row);
  }

  void StoreRow(const Job& job, int64_t y, const int8_t* codes, float* values) const {
    const StemTensors& tensors = *job.tensors;
    const int64_t channels = p_.out_channels, pixels = job.size->out_width, words = WordsFor(channels);
    const int64_t pixel = (job.image * job.size->out_height + y) * pixels;
    if (tensors.pooled != nullptr) Unpad(codes, pixels, tensors.pooled + pixel * channels);
    if (tensors.output == nullptr && tensors.bits == nullptr) return;
    kernel_.dequantize(codes, padded_, pixels, channels, p_.target, values);
    TailStrip strip{};
    strip.values = values;
    strip.value_step = channels;
    strip.pixels = pixels;
    strip.channels = channels;
    if (tail_.adds_residual) strip.residual = tensors.residual + pixel * channels;
    strip.output = tensors.output == nullptr ? values : tensors.output + pixel * channels;
    strip.pixel_step = channels;
    if (tail_.writes_bits) strip.bits = tensors.bits + pixel * words;
    strip.bits_step = words;
    SetTail(tail_, 0, &strip);
    tail_kernel_.run_tail(strip);
  }

  // ---- Codes that the caller asked for, which few do: not made to be fast ----

  void Unpad(const int8_t* codes, int64_t pixels, int8_t* to) const {
    for (int64_t i = 0; i < pixels; ++i) {
      std::copy(codes + i * padded_, codes + i * padded_ + p_.out_channels, to + i * p_.out_channels);
    }
  }

  void WriteQuantized(const Job& job) const {
    const StemSize& size = *job.size;
    const int64_t plane = size.in_height * size.in_width, folded = size.folded_height * size.folded_width;
    const float* const image = job.tensors->image + job.image * plane * p_.channels;
    int8_t* to = job.tensors->quantized + job.image * folded * p_.FilterChannels();
    const int32_t byte_of_zero = kernel_.signed_codes ? 0 : kByteOfCode;
    for (int64_t i = 0; i < folded; ++i) {
      for (int64_t k = 0; k < p_.FilterChannels(); ++k) {
        const int64_t phase = k / p_.channels, c = k % p_.channels;
        const int64_t y = p_.fold * (i / size.folded_width) + phase / p_.fold;
        const int64_t pixel = y * size.in_width + p_.fold * (i % size.folded_width) + phase % p_.fold;
        uint8_t byte = 0;
        Quantize(image + (p_.layout == Layout::kNchw ? c * plane + pixel : pixel * p_.channels + c), 1, &byte);
        *to++ = static_cast<int8_t>(byte - byte_of_zero);
      }
    }
  }

  void WriteConvolved(const Job& job) const {
    const StemSize& size = *job.size;
    auto* const codes = reinterpret_cast<int8_t*>(job.Scratch(0));
    for (int64_t y = 0; y < size.conv_height; ++y) {
      ConvolveRow(job, y, job.Scratch(0) + job.places.ring_bytes, codes);
      const int64_t pixel = (job.image * size.conv_height + y) * size.conv_width;
      Unpad(codes, size.conv_width, job.tensors->convolved + pixel * p_.out_channels);
    }
  }

  const StemKernel& kernel_;
  const ConvKernel& tail_kernel_;
  const StemParams p_;
  Tail tail_;
  const int64_t blocks_, padded_;
  const int32_t zero_byte_;
  int64_t kernel_size_[2], strides_[2], start_[2];  // as in PlainFilter
  StemShape shape_{};
  AlignedBytes weights_;
  std::vector<int32_t> base_, mantissa_, left_shift_, right_shift_;  // [padded channels]
  std::vector<float> multiplier_;
};

}  // namespace

std::unique_ptr<Stem> Stem::Create(const StemParams& params, const StemWeights& weights, const Tail& tail,
                                   const char* kernel, std::string* error) {
  *error = CheckStem(params, weights, tail);
  if (!error->empty()) return nullptr;
  const char* const name = SelectConvKernel(kernel, error);
  if (name == nullptr) return nullptr;
  const StemKernel* const table = FindStemKernel(name);
  if (table == nullptr) return MakeReferenceStem(params, weights, tail);
  return MakeStem(*table, *FindConvKernel(name), params, weights, tail);
}

std::unique_ptr<Stem> MakeStem(const StemKernel& kernel, const ConvKernel& tail_kernel, const StemParams& params,
                               const StemWeights& weights, const Tail& tail) {
  return std::make_unique<KernelStem>(kernel, tail_kernel, params, weights, tail);
}

}  // namespace bnnedge
