// Compares every ConvKernel table that this CPU supports with the definition in bnnedge/conv_kernel.h, one bit or one
// word at a time, and the PackKernel and PointwiseKernel of the same instruction set with theirs. All buffers end at an
// unreadable page, and outputs lie in a field of poison that must survive around them.
//   conv_kernel_test [kernel name]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/pack_kernel.h"
#include "bnnedge/pointwise_kernel.h"
#include "guarded.h"

namespace {

using bnnedge::ConvKernel;
using bnnedge::ConvRun;
using bnnedge::ConvStrip;
using bnnedge::OutputKind;
using bnnedge::PackKernel;
using bnnedge::PointwiseKernel;
using bnnedge::PointwiseStrip;
using bnnedge::WordsFor;
using bnnedge::test::cases;
using bnnedge::test::Fail;
using bnnedge::test::failures;
using bnnedge::test::Guarded;
using bnnedge::test::kPoison;
using bnnedge::test::Random;

constexpr size_t kAlignment = 64;

// The form of a strip to test. The runs are `run_words` long with gaps between them.
struct Shape {
  int64_t pixels, channels, run_count, run_words, gap, pixel_step;
  bool nchw;
  int pattern;  // 0 random, 1 all bits differ, 2 none does, 3 half a row each
  // If not 0, the strip has chained words of windows of so many rows, run_words / chain_height columns each; pixel_step
  // is in columns, and `gap` columns on either side are outside of the image.
  int64_t chain_height = 0;
  int64_t rows = 1;  // of `pixels` pixels, more only for kernels that pair words
  int64_t KWords() const { return run_count * run_words; }
  std::string Text(const ConvKernel& kernel, const char* kind) const {
    return std::string(kernel.name) + " " + kind + (nchw ? " nchw" : "") + ": " + std::to_string(pixels) + " pixels, " +
           std::to_string(channels) + " channels, " + std::to_string(run_count) + " x " + std::to_string(run_words) +
           " words, step " + std::to_string(pixel_step) + ", pattern " + std::to_string(pattern) +
           (chain_height > 0 ? ", chained by " + std::to_string(chain_height) : "") +
           (rows > 1 ? ", rows " + std::to_string(rows) : "");
  }
};

constexpr const char* kKindNames[] = {"sums", "float", "int8", "bits"};

size_t ElementBytes(OutputKind kind) { return kind == OutputKind::kInt8 ? 1 : 4; }

class StripTest {
 public:
  StripTest(const ConvKernel& kernel, const Shape& shape)
      : kernel_(kernel),
        shape_(shape),
        input_(static_cast<size_t>(InputWords()) * 4),
        filter_(static_cast<size_t>(shape.channels * shape.KWords()) * 4),
        weights_(static_cast<size_t>(kernel.packed_bytes(shape.channels, shape.KWords())), kAlignment),
        scratch_(ScratchBytes(kernel, shape), kAlignment),
        base_(static_cast<size_t>((shape.rows > 1 ? 4 : 2) * kernel.block) * 4),
        multiplier_(static_cast<size_t>(kernel.block) * 4),
        bias_(static_cast<size_t>(kernel.block) * 4) {
    for (int64_t r = 0; r < shape.run_count; ++r) runs_.push_back({r * (shape.run_words + shape.gap), shape.run_words});
    FillBits();
    Count();
    if (shape.chain_height > 0) Chain();
    if (kernel.pair_words != nullptr) Pair();
    kernel.pack_weights(filter_.As<uint32_t>(), shape.channels, shape.KWords(), weights_.As<void>());
    const int32_t second_class = static_cast<int32_t>(kernel.block);
    for (int64_t i = 0; i < shape.pixels; ++i) base_offset_.push_back(i % 3 == 1 ? second_class : 0);
    for (int64_t y = 0; y < shape.rows; ++y) row_base_.push_back(y % 2 == 1 ? 2 * second_class : 0);
  }

  void Run(OutputKind kind, int32_t doubled, bool clamps) {
    ++cases;
    FillChannels(kind);
    const int64_t out_channels = shape_.channels + (kind == OutputKind::kBits ? 0 : 3);  // of the whole tensor
    const int64_t per_pixel = kind == OutputKind::kBits ? WordsFor(shape_.channels) + 2 : out_channels;
    const int64_t pixels = shape_.rows * shape_.pixels;
    const int64_t elements = shape_.nchw ? shape_.channels * (pixels + 5) : pixels * per_pixel;
    Guarded output(static_cast<size_t>(elements) * ElementBytes(kind), ElementBytes(kind));

    ConvStrip strip{};
    strip.input = input_.As<uint32_t>();
    strip.pixels = shape_.pixels;
    strip.pixel_step = shape_.pixel_step;
    if (shape_.chain_height > 0) {
      strip.input = chained_.data() + bnnedge::kChainLead;
      strip.pixel_step *= shape_.chain_height;
      strip.ones = ones_.data();
      strip.ones_step = shape_.pixel_step;
    }
    if (kernel_.pair_words != nullptr) {
      strip.input = pairs_.data();
      strip.pixel_step *= bnnedge::kPairWords;
      strip.row_step = (RowWords() + Extent()) * bnnedge::kPairWords;
      strip.wrap = RowWords() * bnnedge::kPairWords;
    }
    strip.rows = shape_.rows;
    strip.row_base = row_base_.data();
    strip.runs = kernel_.pair_words == nullptr ? runs_.data() : pair_runs_.data();
    strip.run_count = shape_.run_count;
    strip.k_words = shape_.KWords();
    strip.weights = weights_.As<void>();
    strip.channels = shape_.channels;
    strip.scratch = scratch_.As<void>();
    strip.new_input = first_;
    strip.kind = kind;
    strip.output = output.As<void>();
    strip.out_pixel_step = shape_.nchw ? 1 : per_pixel;
    strip.out_channel_step = shape_.nchw ? pixels + 5 : 1;
    strip.base = base_.As<int32_t>();
    strip.base_offset = base_offset_.data();
    strip.doubled = doubled;
    strip.clamps = clamps;
    strip.clamp_low = clamps ? -20 : INT32_MIN;
    strip.clamp_high = clamps ? 75 : INT32_MAX;
    strip.multiplier = multiplier_.As<float>();
    strip.bias = bias_.As<float>();
    kernel_.run(strip);
    first_ = false;

    std::vector<unsigned char> expected(output.bytes(), kPoison);
    Expect(strip, &expected);
    if (std::memcmp(expected.data(), output.As<unsigned char>(), expected.size()) != 0 || !output.Untouched()) {
      Fail(shape_.Text(kernel_, kKindNames[static_cast<int>(kind)]) + ", doubled " + std::to_string(doubled) +
           (clamps ? ", clamped" : ""));
    }
  }

 private:
  static size_t ScratchBytes(const ConvKernel& kernel, const Shape& shape) {
    if (kernel.scratch_bytes == nullptr) return 0;
    return static_cast<size_t>(kernel.scratch_bytes(shape.rows * shape.pixels, shape.KWords()));
  }

  int64_t InputWords() const {
    if (shape_.chain_height > 0) return shape_.chain_height * (Columns() - 2 * shape_.gap);
    return shape_.rows * RowWords();
  }

  // Words of a window with its gaps, and of a row of windows.
  int64_t Extent() const { return shape_.run_count * (shape_.run_words + shape_.gap) - shape_.gap; }
  int64_t RowWords() const { return (shape_.pixels - 1) * shape_.pixel_step + Extent(); }

  // The columns of a row of chained words.
  int64_t Columns() const { return (shape_.pixels - 1) * shape_.pixel_step + shape_.run_words / shape_.chain_height; }

  // Word k of pixel i's window.
  uint32_t Word(int64_t i, int64_t k) {
    if (shape_.chain_height == 0) {
      const ConvRun& run = runs_[static_cast<size_t>(k / shape_.run_words)];
      const int64_t window = i / shape_.pixels * RowWords() + i % shape_.pixels * shape_.pixel_step;
      return input_.As<uint32_t>()[window + run.offset + k % shape_.run_words];
    }
    const int64_t inside = Columns() - 2 * shape_.gap;
    const int64_t column = i * shape_.pixel_step + k / shape_.chain_height - shape_.gap;
    if (column < 0 || column >= inside) return 0;
    return input_.As<uint32_t>()[k % shape_.chain_height * inside + column];
  }

  void Chain() {
    for (int64_t i = 0; i < shape_.channels * shape_.KWords(); ++i) {
      if (i % shape_.KWords() != 0) filter_.As<uint32_t>()[i] ^= filter_.As<uint32_t>()[i - 1];
    }
    const int64_t columns = (Columns() + bnnedge::kChainColumns - 1) / bnnedge::kChainColumns * bnnedge::kChainColumns;
    chained_.assign(static_cast<size_t>(bnnedge::kChainLead + columns * shape_.chain_height), Random());
    ones_.assign(static_cast<size_t>(columns), -1);
    const int64_t inside = Columns() - 2 * shape_.gap;
    bnnedge::ChainedRow row{{}, shape_.gap, inside, Columns(), chained_.data() + bnnedge::kChainLead, ones_.data()};
    for (int64_t r = 0; r < shape_.chain_height; ++r) row.rows[r] = input_.As<uint32_t>() + r * inside;
    kernel_.chain(shape_.chain_height, shape_.KWords())(row);
  }

  // Pairs word by word, then all at once. A word without a partner is paired with poison, which must not matter.
  void Pair() {
    const uint32_t* input = input_.As<uint32_t>();
    const auto pair = [&](int64_t first, int64_t second, int64_t last_second) {
      const uint32_t poison = 0x5a5a5a5au;
      pairs_.resize(pairs_.size() + static_cast<size_t>(bnnedge::kPairWords));
      uint32_t* const to = pairs_.data() + pairs_.size() - bnnedge::kPairWords;
      kernel_.pair_words(input + first, second < last_second ? input + second : &poison, 1, to);
    };
    for (int64_t y = 0; y < shape_.rows; ++y) {
      const int64_t row = y * RowWords(), next = row + RowWords();
      for (int64_t w = 0; w < RowWords(); ++w) pair(row + w, row + w + shape_.pixel_step, next);
      for (int64_t w = 0; w < Extent(); ++w) pair(next - Extent() + w, next + w, shape_.rows * RowWords());
    }
    for (const ConvRun& run : runs_) pair_runs_.push_back({run.offset * bnnedge::kPairWords, run.words});
    const int64_t words = RowWords() - shape_.pixel_step;
    if (words <= 0) return;
    Guarded at_once(static_cast<size_t>(words * bnnedge::kPairWords) * 4);
    kernel_.pair_words(input, input + shape_.pixel_step, words, at_once.As<uint32_t>());
    if (std::memcmp(at_once.As<void>(), pairs_.data(), at_once.bytes()) != 0 || !at_once.Untouched()) {
      Fail(shape_.Text(kernel_, "pairs"));
    }
  }

  void FillBits() {
    const int64_t words = InputWords();
    for (int64_t i = 0; i < words; ++i) input_.As<uint32_t>()[i] = shape_.pattern == 0 ? Random() : 0;
    const int64_t k_words = shape_.KWords();
    for (int64_t i = 0; i < shape_.channels * k_words; ++i) {
      uint32_t word = Random();
      if (shape_.pattern == 1 || (shape_.pattern == 3 && i % k_words < k_words / 2)) word = ~0u;
      if (shape_.pattern == 2 || (shape_.pattern == 3 && i % k_words >= k_words / 2)) word = 0;
      filter_.As<uint32_t>()[i] = word;
    }
  }

  void Count() {
    for (int64_t i = 0; i < shape_.rows * shape_.pixels; ++i) {
      for (int64_t c = 0; c < shape_.channels; ++c) {
        int32_t p = 0;
        const uint32_t* filter = filter_.As<uint32_t>() + c * shape_.KWords();
        for (int64_t k = 0; k < shape_.KWords(); ++k) p += __builtin_popcount(Word(i, k) ^ filter[k]);
        popcounts_.push_back(p);
      }
    }
  }

  // Bases are near the popcounts, so that bits of both values occur. Those of the padding give bits of 0.
  void FillChannels(OutputKind kind) {
    const int64_t block = kernel_.block;
    const int32_t middle = static_cast<int32_t>(16 * shape_.KWords());
    for (int64_t i = 0; i < static_cast<int64_t>(base_.bytes() / 4); ++i) {
      int32_t base = middle + static_cast<int32_t>(Random() % 17) - 8;
      if (i % block % 7 == 5) base = popcounts_[static_cast<size_t>(i % block % shape_.channels)];
      if (kind != OutputKind::kBits && i % 5 == 0) base = static_cast<int32_t>(Random());
      if (i % block >= shape_.channels) base = INT32_MAX;
      base_.As<int32_t>()[i] = base;
    }
    for (int64_t c = 0; c < block; ++c) {
      multiplier_.As<float>()[c] = 0.5f + static_cast<float>(static_cast<int32_t>(Random() % 2001) - 1000) * 1e-3f;
      bias_.As<float>()[c] = static_cast<float>(static_cast<int32_t>(Random() % 2001) - 1000) * 0.1f;
      if (kind == OutputKind::kInt8 && c % 3 == 0) {  // halves, both signs
        multiplier_.As<float>()[c] = 0.25f;
        bias_.As<float>()[c] = c % 2 == 0 ? 0.0f : -1.0f;
      }
    }
  }

  void Expect(const ConvStrip& strip, std::vector<unsigned char>* expected) const {
    for (int64_t i = 0; i < shape_.rows * shape_.pixels; ++i) {
      const int32_t* base = strip.base + row_base_[static_cast<size_t>(i / shape_.pixels)];
      base += strip.base_offset[i % shape_.pixels];
      std::vector<uint32_t> bits(static_cast<size_t>(WordsFor(shape_.channels)), 0);
      for (int64_t c = 0; c < shape_.channels; ++c) {
        const int32_t p = popcounts_[static_cast<size_t>(i * shape_.channels + c)];
        if (strip.kind == OutputKind::kBits) {
          bits[static_cast<size_t>(c / 32)] |= static_cast<uint32_t>(p > base[c]) << (c % 32);
          continue;
        }
        const int64_t element = i * strip.out_pixel_step + c * strip.out_channel_step;
        int32_t v = static_cast<int32_t>(static_cast<uint32_t>(base[c]) +
                                         static_cast<uint32_t>(strip.doubled) * static_cast<uint32_t>(p));
        if (strip.kind == OutputKind::kSums) {
          Put(expected, element, v);
          continue;
        }
        v = std::min(std::max(v, strip.clamp_low), strip.clamp_high);
        const volatile float product = static_cast<float>(v) * strip.multiplier[c];
        const float y = product + strip.bias[c];
        if (strip.kind == OutputKind::kFloat) {
          Put(expected, element, y);
        } else {
          Put(expected, element, static_cast<int8_t>(std::min(std::max(std::round(y), -128.0f), 127.0f)));
        }
      }
      for (size_t w = 0; w < bits.size() && strip.kind == OutputKind::kBits; ++w) {
        Put(expected, i * strip.out_pixel_step + static_cast<int64_t>(w), bits[w]);
      }
    }
  }

  template <typename T>
  static void Put(std::vector<unsigned char>* bytes, int64_t element, T value) {
    std::memcpy(bytes->data() + static_cast<size_t>(element) * sizeof(T), &value, sizeof(T));
  }

  const ConvKernel& kernel_;
  const Shape shape_;
  Guarded input_, filter_, weights_, scratch_, base_, multiplier_, bias_;
  std::vector<ConvRun> runs_;
  std::vector<ConvRun> pair_runs_;
  std::vector<uint32_t> chained_, pairs_;
  std::vector<int32_t> ones_, base_offset_, row_base_, popcounts_;
  bool first_ = true;
};

void TestStrip(const ConvKernel& kernel, const Shape& shape) {
  StripTest test(kernel, shape);
  if (shape.nchw) {
    test.Run(OutputKind::kFloat, -2, false);
    test.Run(OutputKind::kFloat, 2, true);
    return;
  }
  for (const int32_t doubled : {-2, 2}) {
    test.Run(OutputKind::kSums, doubled, false);
    test.Run(OutputKind::kFloat, doubled, doubled > 0);
    test.Run(OutputKind::kInt8, doubled, doubled < 0);
  }
  test.Run(OutputKind::kBits, -2, false);
}

void TestStrips(const ConvKernel& kernel) {
  std::vector<int64_t> channel_counts = {1, 3, 4, 15, 16, 17, 31, 32};
  for (const int64_t more : {33, 47, 48, 63, 64, 96, 97, 127, 128}) {
    if (more <= kernel.block) channel_counts.push_back(more);
  }
  if (channel_counts.back() != kernel.block) channel_counts.push_back(kernel.block);
  // All word counts meet all channel counts; the number of pixels and the form of the runs vary with them.
  const int64_t run_words[] = {1, 2, 3, 4, 5, 7, 9, 18, 31, 36, 59, 60, 61, 62, 63, 64, 90, 121, 144};
  const int64_t pixel_counts[] = {1, 2, 3, 7, 14, 15, 17, 29};
  int64_t turn = 0;
  for (const int64_t words : run_words) {
    for (const int64_t channels : channel_counts) {
      const int64_t pixels = words < 59 || turn % 7 == 0 ? pixel_counts[turn % 8] : pixel_counts[turn % 3];
      const int pattern = static_cast<int>(turn % 5) % 4;
      TestStrip(kernel, {pixels, channels, 1, words, 0, words, false, pattern});
      TestStrip(kernel, {pixels, channels, 1, words, 0, std::max<int64_t>(1, words / 3), turn % 2 == 0, pattern});
      ++turn;
    }
  }
  // Several runs, as of kernel rows, dilated taps and groups.
  for (const int64_t run_count : {2, 3, 9, 25, 49}) {
    for (const int64_t words : {1, 2, 3, 4}) {
      for (const int64_t channels : {5, 32}) {
        const int64_t pixels = pixel_counts[turn % 8];
        TestStrip(kernel, {pixels, channels, run_count, words, 1 + turn % 4, 1 + turn % 6, turn % 3 == 0, 0});
        ++turn;
      }
    }
  }
  // These bring counters of 8 and 16 bits to their limits.
  for (const int64_t words : {30, 60, 61, 62, 63, 64, 120, 124, 248, 512}) {
    for (const int pattern : {1, 2, 3}) TestStrip(kernel, {3, 17, 1, words, 0, words, false, pattern});
  }
  for (const int64_t words : {2046, 2047, 2048, 2050}) {
    TestStrip(kernel, {3, kernel.block, 1, words, 0, words, false, 1});
  }
}

void TestChainedStrips(const ConvKernel& kernel) {
  int64_t turn = 0;
  for (const int64_t height : {1, 2, 3}) {
    for (const int64_t columns : {2, 6, 12, 14, 16, 24, 48, 128, 683}) {
      const int64_t words = height * columns;
      if (kernel.chain(height, words) == nullptr) continue;
      for (const int64_t channels : {1, 15, 16, 17, 31, 32}) {
        for (const int64_t pixels : {1, 2, 4, 7, 8, 13, 29}) {
          if (words > 144 && pixels > 2) continue;
          const int64_t step = 1 + turn % 5;
          TestStrip(kernel, {pixels, channels, 1, words, columns > 2 ? turn % 3 : 0, step, turn % 3 == 0,
                             static_cast<int>(turn % 4), height});
          ++turn;
        }
      }
    }
  }
}

void TestStripsOfRows(const ConvKernel& kernel) {
  int64_t turn = 0;
  for (const int64_t rows : {2, 3, 7}) {
    for (const int64_t pixels : {1, 2, 3, 7, 8, 9}) {
      for (const int64_t words : {1, 3, 9, 36, 64}) {
        for (const int64_t channels : {5, 32, 33, 64}) {
          const int64_t step = 1 + turn % 4;
          TestStrip(kernel, {pixels, channels, 1 + turn % 3, words, turn % 5, step, turn % 3 == 0,
                             static_cast<int>(turn % 4), 0, rows});
          ++turn;
        }
      }
    }
  }
  TestStrip(kernel, {3, kernel.block, 1, 2050, 0, 2050, false, 1, 0, 3});
}

// Numbers whose signs are easily mistaken: both zeros, NaN of either sign, infinities, the smallest numbers.
float AwkwardFloat() {
  const float special[] = {0.0f,
                           -0.0f,
                           std::numeric_limits<float>::quiet_NaN(),
                           -std::numeric_limits<float>::quiet_NaN(),
                           std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::denorm_min(),
                           -std::numeric_limits<float>::denorm_min()};
  const uint32_t pick = Random() % 24;
  return pick < 8 ? special[pick] : static_cast<float>(static_cast<int32_t>(Random())) * 1e-6f;
}

template <typename Below>
void CheckWords(const std::string& what, Guarded* words, int64_t pixels, int64_t channels, const Below& below) {
  ++cases;
  std::vector<uint32_t> expected(static_cast<size_t>(pixels * WordsFor(channels)), 0);
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      expected[static_cast<size_t>(i * WordsFor(channels) + c / 32)] |= static_cast<uint32_t>(below(i, c)) << (c % 32);
    }
  }
  if (std::memcmp(expected.data(), words->As<void>(), words->bytes()) != 0 || !words->Untouched()) {
    Fail(what + ": " + std::to_string(pixels) + " pixels, " + std::to_string(channels) + " channels");
  }
}

void TestPacking(const std::string& name, const PackKernel& kernel, int64_t pixels, int64_t channels) {
  const size_t values = static_cast<size_t>(pixels * channels);
  const size_t word_bytes = static_cast<size_t>(pixels * WordsFor(channels)) * 4;
  Guarded floats(values * 4), bytes(values, 1);
  for (size_t i = 0; i < values; ++i) {
    floats.As<float>()[i] = AwkwardFloat();
    bytes.As<int8_t>()[i] = static_cast<int8_t>(Random());
  }
  for (const float zero : {0.0f, -0.0f, 0.75f, -1.0f}) {
    Guarded words(word_bytes);
    kernel.pack_nhwc_float(floats.As<float>(), zero, pixels, channels, words.As<uint32_t>());
    CheckWords(name + " pack_nhwc_float", &words, pixels, channels,
               [&](int64_t i, int64_t c) { return floats.As<float>()[i * channels + c] < zero; });
  }
  {
    // Limits of either sign, infinities and NaN among them, half of them tied with values of the channel.
    Guarded words(word_bytes), limits(static_cast<size_t>(channels) * 4);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t pixel = static_cast<int64_t>(Random()) % pixels;
      limits.As<float>()[c] = c % 2 == 0 ? floats.As<float>()[pixel * channels + c] : AwkwardFloat();
    }
    kernel.pack_nhwc_float_by_channel(floats.As<float>(), limits.As<float>(), pixels, channels, words.As<uint32_t>());
    CheckWords(name + " pack_nhwc_float_by_channel", &words, pixels, channels,
               [&](int64_t i, int64_t c) { return floats.As<float>()[i * channels + c] < limits.As<float>()[c]; });
  }
  {
    Guarded words(word_bytes);
    kernel.pack_nchw_float(floats.As<float>(), channels, pixels, words.As<uint32_t>());
    CheckWords(name + " pack_nchw_float", &words, pixels, channels,
               [&](int64_t i, int64_t c) { return floats.As<float>()[c * pixels + i] < 0.0f; });
  }
  for (const int32_t zero_point : {-128, -1, 0, 5, 127}) {
    Guarded words(word_bytes);
    kernel.pack_nhwc_int8(bytes.As<int8_t>(), zero_point, pixels, channels, words.As<uint32_t>());
    CheckWords(name + " pack_nhwc_int8", &words, pixels, channels,
               [&](int64_t i, int64_t c) { return bytes.As<int8_t>()[i * channels + c] < zero_point; });
  }
  ++cases;
  Guarded words(word_bytes), signs(values * 4);
  for (size_t i = 0; i < word_bytes / 4; ++i) words.As<uint32_t>()[i] = Random();  // spare bits are not looked at
  kernel.unpack_nhwc(words.As<uint32_t>(), pixels, channels, signs.As<float>());
  bool equal = signs.Untouched();
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const uint32_t word = words.As<uint32_t>()[i * WordsFor(channels) + c / 32];
      equal = equal && signs.As<float>()[i * channels + c] == ((word >> (c % 32)) & 1u ? -1.0f : 1.0f);
    }
  }
  if (!equal) Fail(name + " unpack_nhwc: " + std::to_string(pixels) + " pixels, " + std::to_string(channels));
}

// `pixels` from `first` on of rows of `width`, every `stride`-th pixel of every `stride`-th row of the image.
void TestPointwise(const std::string& name, const PointwiseKernel& kernel, int64_t channels, int64_t out_channels,
                   int64_t width, int64_t stride, int64_t first, int64_t pixels) {
  ++cases;
  const int64_t pixel_step = stride * channels, row_step = stride * (width * stride - stride / 2) * channels;
  const int64_t last = first + pixels - 1, end = last / width * row_step + last % width * pixel_step + channels;
  const int64_t out_step = out_channels + 2;
  Guarded input(static_cast<size_t>(end) * 4), weights(static_cast<size_t>(channels * kernel.block) * 4, kAlignment);
  Guarded bias(static_cast<size_t>(kernel.block) * 4), output(static_cast<size_t>(pixels * out_step - 2) * 4);
  const auto uniform = [] { return static_cast<float>(static_cast<int32_t>(Random())) * 0x1p-31f; };
  for (int64_t i = 0; i < end; ++i) input.As<float>()[i] = uniform();
  for (int64_t i = 0; i < channels * kernel.block; ++i) {
    weights.As<float>()[i] = i % kernel.block < out_channels ? uniform() : 0.0f;
  }
  for (int64_t o = 0; o < kernel.block; ++o) bias.As<float>()[o] = o < out_channels ? uniform() : 0.0f;
  input.As<float>()[end - 1] = std::numeric_limits<float>::quiet_NaN();  // of the last pixel
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool clips = Random() % 2 == 0;
  const float low = clips ? -0.25f : -kInfinity, high = clips ? 0.5f : kInfinity;
  PointwiseStrip strip{};
  strip.input = input.As<float>();
  strip.width = width;
  strip.pixel_step = pixel_step;
  strip.row_step = row_step;
  strip.first = first;
  strip.pixels = pixels;
  strip.channels = channels;
  strip.weights = weights.As<float>();
  strip.bias = bias.As<float>();
  strip.out_channels = out_channels;
  strip.output = output.As<float>();
  strip.out_pixel_step = out_step;
  strip.low = low;
  strip.high = high;
  kernel.run(strip);
  bool equal = output.Untouched();
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t at = first + i;
    const float* const x = input.As<float>() + at / width * row_step + at % width * pixel_step;
    for (int64_t o = 0; o < out_channels; ++o) {
      float y = bias.As<float>()[o];
      for (int64_t c = 0; c < channels; ++c) y = std::fma(x[c], weights.As<float>()[c * kernel.block + o], y);
      y = y < low ? low : y > high ? high : y;
      const float found = output.As<float>()[i * out_step + o];
      equal = equal && (std::isnan(y) ? std::isnan(found) : std::memcmp(&found, &y, sizeof(y)) == 0);
    }
    for (size_t byte = 0; i + 1 < pixels && byte < 2 * sizeof(float); ++byte) {
      equal = equal && (output.As<unsigned char>() + (i * out_step + out_channels) * 4)[byte] == kPoison;
    }
  }
  if (!equal) {
    Fail(name + " pointwise: " + std::to_string(channels) + " to " + std::to_string(out_channels) + " channels, " +
         std::to_string(pixels) + " pixels from " + std::to_string(first) + " on in rows of " + std::to_string(width) +
         ", stride " + std::to_string(stride));
  }
}

void TestPointwise(const std::string& name, const PointwiseKernel& kernel) {
  for (const int64_t channels : {1, 3, 33}) {
    for (const int64_t missing : {0, 1, 7, 15}) {
      for (int64_t pixels = 1; pixels <= 13; ++pixels) {
        const int64_t width = 1 + pixels % 5, stride = 1 + pixels % 3, first = pixels % 4 * 3;
        TestPointwise(name, kernel, channels, kernel.block - missing, width, stride, first, pixels);
      }
    }
  }
}

void TestKernel(const ConvKernel& kernel) {
  const int64_t before = failures, cases_before = cases;
  TestStrips(kernel);
  if (kernel.chain != nullptr) TestChainedStrips(kernel);
  if (kernel.pair_words != nullptr) TestStripsOfRows(kernel);
  for (const int64_t channels : {1, 3, 4, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 256}) {
    for (const int64_t pixels : {1, 3, 4, 7, 15, 16, 17, 31, 33, 49}) {
      TestPacking(kernel.name, bnnedge::FindPackKernel(kernel.name), pixels, channels);
    }
  }
  const PointwiseKernel* const pointwise = bnnedge::FindPointwiseKernel(kernel.name);
  if (pointwise != nullptr) TestPointwise(kernel.name, *pointwise);
  if (kernel.peak != nullptr && (kernel.peak(0) != 0 || kernel.peak(3) <= 0)) Fail(std::string(kernel.name) + " peak");
  std::printf("%s: %lld cases, %lld failed\n", kernel.name, static_cast<long long>(cases - cases_before),
              static_cast<long long>(failures - before));
}

}  // namespace

int main(int argc, char** argv) {
  int64_t tested = 0;
  for (const char* name : bnnedge::ConvKernelNames()) {
    const ConvKernel* kernel = bnnedge::FindConvKernel(name);
    if (kernel == nullptr || (argc > 1 && std::strcmp(name, argv[1]) != 0)) continue;
    TestKernel(*kernel);
    ++tested;
  }
  if (tested == 0) {
    std::fprintf(stderr, "no kernel called %s on this CPU\n", argc > 1 ? argv[1] : "anything");
    return 2;
  }
  return failures == 0 ? 0 : 1;
}
