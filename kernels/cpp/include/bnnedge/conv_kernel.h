// What an instruction set supplies to Conv: one table a file, listed in select.cc. conv.cc does everything that is the
// same for all of them: checks, border classes, the zero-bordered copy of the input, groups, threads.
//
// A convolution is cut into strips: all output pixels of one row (of one image) x one block of output channels (of one
// group). A kernel computes, for pixel i < pixels and channel c < channels of a strip,
//   p = popcount(input xor filter) over the runs
// where the input words of pixel i are input[i * pixel_step + run.offset .. + run.words) for each run in order, matched
// with the block's k_words filter words in order (tap by tap). Borders need no care: outside pixels are zero words in
// the copy. (Kernels with `pair_words` take several rows and other words, see there.) Then, with
// b = base[base_offset[i] + c], it stores
//   kBits           bit c of the pixel's words: p > b. All words(channels) words are written, spare bits are 0
//   kSums           v = b + doubled * p      (doubled is -2 or 2; everything modulo 2^32)
//   kFloat          y = float(clamp(v)) * multiplier[c] + bias[c], product and sum rounded apart
//   kInt8           y rounded half away from zero, saturated to [-128, 127]
// at output[i * out_pixel_step + c * out_channel_step], in elements of the kind's type (words for kBits).
// base, multiplier and bias can be read up to the block's full width: the padding is there, and such that the bits of
// p > b are 0 for channels beyond the last. Nothing but the named outputs may be written; inputs and filters may not be
// read beyond their words.
#pragma once

#include <cstdint>

#include "bnnedge/chain.h"
#include "bnnedge/conv.h"

namespace bnnedge {

// What follows the float values of a strip; the meaning of each step is that of Tail. `channels` are those of the strip.
struct TailStrip {
  const float* values;  // [pixels][value_step]
  int64_t value_step;
  int64_t pixels, channels;
  const float* residual;  // of pixel 0, channel 0, steps as `output`; or nullptr
  float* output;
  int64_t pixel_step;  // floats
  uint32_t* bits;      // words of pixel 0 from channel 0 on, or nullptr
  int64_t bits_step;   // words
  const float* slope;  // [channels] each, or nullptr
  const float* offset;
  const float* limit;  // never nullptr with bits
  float low, high;
};

// Words that are neighbours both in the image and in the filter.
struct ConvRun {
  int64_t offset;  // words from the pixel's first word
  int64_t words;
};

// Words of pairs for one word of an image.
constexpr int64_t kPairWords = 4;

struct ConvStrip {
  const uint32_t* input;  // first word of the window of pixel 0
  int64_t pixels;
  int64_t pixel_step;  // words from one pixel's window to the next one's
  const ConvRun* runs;
  int64_t run_count;
  int64_t k_words;       // sum of the runs' words
  const void* weights;   // this block, as pack_weights left it; 64-byte aligned
  int64_t channels;      // of this block: 1 to ConvKernel::block
  void* scratch;         // scratch_bytes, 64-byte aligned, kept between the strips of one row
  bool new_input;        // first strip with this input: what scratch holds of the row is not valid

  // Only for kernels with `pair_words`: rows of `pixels` pixels, whose outputs follow each other.
  int64_t rows;
  int64_t row_step;         // words from a row's window of pixel 0 to the next row's
  int64_t wrap;             // and to the window of the row's last pixel, paired with the next row's first
  const int32_t* row_base;  // [rows], to be added to base and half_base

  // Chained words (bnnedge/chain.h), filter and input: popcount(s_0) of pixel 0, and the step to that of the next pixel.
  // There is one run then. Or nullptr: plain words.
  const int32_t* ones;
  int64_t ones_step;

  OutputKind kind;
  void* output;              // of pixel 0, channel 0
  int64_t out_pixel_step;    // elements
  int64_t out_channel_step;  // elements; not 1 only for kFloat in NCHW (out_pixel_step is 1 then)
  const int32_t* base;
  const int32_t* base_offset;  // [pixels]
  int32_t doubled;             // -2 or 2
  bool clamps;                 // false: the two limits hold nothing back
  int32_t clamp_low, clamp_high;
  const float* multiplier;  // [block], kFloat and kInt8
  const float* bias;

  // A shorter way to the same bits of y, where all values are even, nothing clamps and nothing overflows (else nullptr):
  //   y = float(half_base[base_offset[i] + c] - p) * half_multiplier[c] + bias[c]
  // with half_base = -+ base / 2 and half_multiplier = -+ 2 multiplier: scaling by 2 and -1 is exact. A kernel can start
  // its counts at half_base and count down.
  const int32_t* half_base;
  const float* half_multiplier;

  // kFloat of a whole block in NHWC, only for kernels with `does_tails`: the tail that `run` does by itself, without
  // slope and offset, from values in registers (`values` is not set). Or nullptr.
  const TailStrip* tail;
};

// Which loop is outside: blocks (the block's weights stay in the first cache) or rows (what a kernel keeps of the row
// in scratch serves all blocks).
enum class StripOrder { kBlocksOutside, kRowsOutside };

struct ConvKernel {
  const char* name;
  int64_t block;  // output channels of a strip; a multiple of 32
  StripOrder order;

  // Bytes of one packed block of `channels` output channels with k_words filter words each.
  int64_t (*packed_bytes)(int64_t channels, int64_t k_words);
  // filter: [channels][k_words]; packed: 64-byte aligned.
  void (*pack_weights)(const uint32_t* filter, int64_t channels, int64_t k_words, void* packed);
  // Bytes of scratch for strips of `pixels` pixels; nullptr: none.
  int64_t (*scratch_bytes)(int64_t pixels, int64_t k_words);
  void (*run)(const ConvStrip& strip);
  void (*finish)(const TailStrip& strip);
  bool does_tails;  // where ConvStrip::tail says

  // As the functions of conv.h. The int8 zero point is in [-128, 127].
  void (*pack_nhwc_float)(const float* values, float zero, int64_t pixels, int64_t channels, uint32_t* words);
  void (*pack_nhwc_int8)(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words);
  // One image: [channels][pixels] -> [pixels][words(channels)].
  void (*pack_nchw_float)(const float* values, int64_t channels, int64_t pixels, uint32_t* words);
  void (*unpack_nhwc)(const uint32_t* words, int64_t pixels, int64_t channels, float* values);

  // Does `rounds` rounds of this kernel's inner loop on registers only and returns how many binary multiply-adds that
  // were: the yardstick of the benchmarks. nullptr: none.
  int64_t (*peak)(int64_t rounds);

  // For windows of `kernel_height` rows and k_words words: what makes the chained words of a row (bnnedge/chain.h) for
  // `run`, or nullptr where plain words are better. nullptr: everywhere.
  ChainRowFunction (*chain)(int64_t kernel_height, int64_t k_words) = nullptr;

  // For kernels that count two pixels at once, of neighbouring windows: makes what `run` reads in place of an image's
  // words, kPairWords words of each word and the word a window's step further on in its row. So the image of pairs
  // serves all taps and all output rows. Behind each of its rows lies the window of the last pixel once more, paired
  // with the first window of the next output row, if the number of pixels in a row is odd. nullptr: `run` reads words.
  void (*pair_words)(const uint32_t* first, const uint32_t* second, int64_t count, uint32_t* pairs) = nullptr;
  int64_t strip_pixels = 0;  // then, pixels of the rows in a strip at most, unless one row has more
};

extern const ConvKernel kConvPortable;
#ifdef BNNEDGE_X86_64
extern const ConvKernel kConvPopcnt;
extern const ConvKernel kConvAvx2;
extern const ConvKernel kConvAvx512;
// Words of a window from which chained words are faster there. With fewer, what a tile does once takes longer than
// carries save; on Zen 4 also what an operation of three sources waits for one of them that was just computed.
int64_t ShortestChain();
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
