// The functions that an instruction set supplies to Conv: one table a file, listed in select.cc. conv.cc and its parts
// do everything that is the same for all instruction sets: checks, border classes, the image with its borders, groups,
// threads.
//
// A convolution is cut into strips. A strip is all output pixels of one row of one image x one block of output channels
// of one group. A kernel computes, for pixel i < pixels and channel c < channels of a strip,
//   p = popcount(input xor filter) over the runs,
// where the input words of pixel i are input[i * pixel_step + run.offset .. + run.words) for each run in order. They
// are matched with the block's k_words filter words in order, one tap after another. Borders need no care, as the image
// has words of 0 there. (A kernel with `pair_words` takes several rows and other words, which are described there.) The
// kernel then stores, with b = base[base_offset[i] + c],
//   kBits           bit c of the pixel's words: p > b. All words(channels) words are written, and spare bits are 0
//   kSums           v = b + doubled * p      (doubled is -2 or 2; everything modulo 2^32)
//   kFloat          y = float(clamp(v)) * multiplier[c] + bias[c], product and sum rounded apart
//   kInt8           y rounded half away from zero, saturated to [-128, 127]
// at output[i * out_pixel_step + c * out_channel_step], in elements of the kind's type (words for kBits).
// base, multiplier and bias can be read up to the block's full width. Behind the last channel they hold padding, and
// the bits of p > b are 0 there. A kernel writes nothing but these outputs, and reads no input or filter beyond its
// words.
#pragma once

#include <cstdint>

#include "bnnedge/chain.h"
#include "bnnedge/conv.h"

namespace bnnedge {

// The float values of a strip and the tail that they go through; Tail says what each step means.
struct TailStrip {
  const float* values;  // [pixels][value_step]
  int64_t value_step;
  int64_t pixels, channels;
  const float* residual;  // of pixel 0 and channel 0, with the steps of `output`; or nullptr
  float* output;
  int64_t pixel_step;  // floats
  uint32_t* bits;      // the words of pixel 0 from channel 0 on, or nullptr
  int64_t bits_step;   // words
  const float* slope;  // slope, offset and limit are [channels] or nullptr
  const float* offset;
  const float* limit;  // is never nullptr where bits are written
  float low, high;
};

// A run of words that are neighbours both in the image and in the filter.
struct ConvRun {
  int64_t offset;  // words from the pixel's first word
  int64_t words;
};

// Words of an image of pairs for one word of an image.
constexpr int64_t kPairWords = 4;

struct ConvStrip {
  const uint32_t* input;  // first word of the window of pixel 0
  int64_t pixels;
  int64_t pixel_step;  // words from one pixel's window to the next one's
  const ConvRun* runs;
  int64_t run_count;
  int64_t k_words;      // sum of the runs' words
  const void* weights;  // the block as pack_weights left it, 64-byte aligned
  int64_t channels;     // of this block: 1 to ConvKernel::block
  void* scratch;        // scratch_bytes, 64-byte aligned, kept between the strips of one row
  bool new_input;       // true for the first strip with this input: what scratch holds of the row is not valid

  // Only for kernels with `pair_words`: the strip has several rows of `pixels` pixels, whose outputs follow each other.
  int64_t rows;
  int64_t row_step;         // words from the window of pixel 0 of a row to that of the next row
  int64_t wrap;             // words to the window of a row's last pixel that is paired with the next row's first pixel
  const int32_t* row_base;  // [rows]: is added to base and half_base

  // Only for chained words (bnnedge/chain.h), else nullptr: popcount(s_0) of pixel 0, and the step to that of the next
  // pixel. Input and filter are chained then, and there is one run.
  const int32_t* ones;
  int64_t ones_step;

  OutputKind kind;
  void* output;              // of pixel 0 and channel 0
  int64_t out_pixel_step;    // elements
  int64_t out_channel_step;  // elements; other than 1 for kFloat in NCHW alone, where out_pixel_step is 1
  const int32_t* base;
  const int32_t* base_offset;  // [pixels]
  int32_t doubled;             // -2 or 2
  bool clamps;                 // false: the two limits hold no accumulator back
  int32_t clamp_low, clamp_high;
  const float* multiplier;  // [block], kFloat and kInt8
  const float* bias;

  // The same bits of y in fewer operations (conv_plan.cc, step 5), or nullptr where they would differ:
  //   y = float(half_base[base_offset[i] + c] - p) * half_multiplier[c] + bias[c].
  // A kernel can start its counts at half_base and count down.
  const int32_t* half_base;
  const float* half_multiplier;

  // For kernels with `fuses_tail`, where a kFloat strip in NHWC has a whole block of channels and the tail has neither
  // slope nor offset: `run` applies this tail to its values while they are in registers, so that `values` is not set.
  // Or nullptr.
  const TailStrip* tail;
};

// Which of the two loops over strips contains the other: the one over blocks, so that the weights of a block stay in
// the first-level cache, or the one over rows, so that what a kernel keeps of a row in scratch serves all blocks.
enum class StripOrder { kBlocksOutside, kRowsOutside };

struct ConvKernel {
  const char* name = nullptr;
  int64_t block = 0;  // output channels of a strip; a multiple of 32
  StripOrder order = StripOrder::kBlocksOutside;

  // Bytes of one packed block of `channels` output channels with k_words filter words each.
  int64_t (*packed_bytes)(int64_t channels, int64_t k_words) = nullptr;
  // filter: [channels][k_words]; packed: 64-byte aligned.
  void (*pack_weights)(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed) = nullptr;
  // Bytes of scratch for strips of `pixels` pixels; nullptr: none.
  int64_t (*scratch_bytes)(int64_t pixels, int64_t k_words) = nullptr;
  void (*run)(const ConvStrip& strip) = nullptr;
  void (*run_tail)(const TailStrip& strip) = nullptr;
  bool fuses_tail = false;  // where ConvStrip::tail says

  // Runs the inner loop on registers only, `rounds` times, and returns the number of binary multiply-adds that these
  // are: the peak that benchmarks compare with. nullptr: none.
  int64_t (*peak)(int64_t rounds) = nullptr;

  // Chooses the function that chains the words of a row (bnnedge/chain.h) for windows of `kernel_height` rows and
  // k_words words. It returns nullptr where plain words are better; a kernel that never chains has no such function.
  ChainRowFunction (*chain)(int64_t kernel_height, int64_t k_words) = nullptr;

  // For kernels that count two neighbouring output pixels at once. The function makes the image that `run` reads: for
  // each word, kPairWords words that combine it with the word one pixel step further on in its row. This image of pairs
  // serves all taps and all output rows. If a row has an odd number of output pixels, the window of its last pixel
  // follows it once more, paired with the window of the next row's first pixel. nullptr: `run` reads the image's words.
  void (*pair_words)(const uint32_t* first, const uint32_t* second, int64_t count, uint32_t* pairs) = nullptr;
  int64_t strip_pixels = 0;  // with pair_words: the most pixels of a strip's rows together, unless one row has more
};

extern const ConvKernel kConvPortable;
#ifdef BNNEDGE_X86_64
extern const ConvKernel kConvPopcnt;
extern const ConvKernel kConvAvx2;
extern const ConvKernel kConvAvx512;
#endif
#ifdef BNNEDGE_NEON
extern const ConvKernel kConvNeon;
extern const ConvKernel kConvNeonTable;
#endif
#ifdef BNNEDGE_NEON_DOT
extern const ConvKernel kConvNeonDot;
#endif

// The kernel called `name`; without a name that of the environment variable BNNEDGE_KERNEL, else the fastest. Returns
// its name as in ConvKernelNames(), or nullptr and a sentence in `error` if no supported kernel has that name.
const char* SelectConvKernel(const char* name, std::string* error);

// The table of a name that SelectConvKernel returned; nullptr for "reference", which has none.
const ConvKernel* FindConvKernel(const char* name);

}  // namespace bnnedge
