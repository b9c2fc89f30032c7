#include "bnnedge/c_api.h"

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "bnnedge/aligned.h"
#include "bnnedge/conv_kernel.h"
#include "bnnedge/pack_kernel.h"
#include "bnnedge/stem_kernel.h"
#include "thread_pool.h"

namespace {

constexpr int32_t kMaxThreads = 1024;

int32_t Fail(bnnedge_status status, const char* message, char* error, size_t error_size) {
  if (error != nullptr && error_size > 0) {
    std::strncpy(error, message, error_size - 1);
    error[error_size - 1] = '\0';
  }
  return status;
}

// No exception may cross the C boundary; std::bad_alloc is the one that can be met.
template <typename Body>
int32_t Guard(char* error, size_t error_size, const Body& body) {
  try {
    std::string message;
    const bnnedge_status status = body(&message);
    return status == BNNEDGE_OK ? status : Fail(status, message.c_str(), error, error_size);
  } catch (const std::bad_alloc&) {
    return Fail(BNNEDGE_INTERNAL, "out of memory", error, error_size);
  } catch (const std::exception& exception) {
    return Fail(BNNEDGE_INTERNAL, exception.what(), error, error_size);
  }
}

std::string CheckCount(const char* name, int64_t expected, int64_t got) {
  if (expected == got) return {};
  return std::string(name) + " must have " + std::to_string(expected) + " elements, got " + std::to_string(got);
}

bnnedge::BConv2dParams FromC(const bnnedge_bconv2d_params& c) {
  bnnedge::BConv2dParams p{};
  p.batch = c.batch;
  p.in_height = c.in_height;
  p.in_width = c.in_width;
  p.channels = c.channels;
  p.out_channels = c.out_channels;
  p.kernel_height = c.kernel_height;
  p.kernel_width = c.kernel_width;
  p.stride_height = c.stride_height;
  p.stride_width = c.stride_width;
  p.dilation_height = c.dilation_height;
  p.dilation_width = c.dilation_width;
  p.pad_top = c.pad_top;
  p.pad_bottom = c.pad_bottom;
  p.pad_left = c.pad_left;
  p.pad_right = c.pad_right;
  p.pad_value = c.pad_value;
  p.groups = c.groups;
  return p;
}

bnnedge::BMaxPoolParams FromC(const bnnedge_bmaxpool2d_params& c) {
  bnnedge::BMaxPoolParams p{};
  p.batch = c.batch;
  p.in_height = c.in_height;
  p.in_width = c.in_width;
  p.words = c.words;
  p.kernel_height = c.kernel_height;
  p.kernel_width = c.kernel_width;
  p.stride_height = c.stride_height;
  p.stride_width = c.stride_width;
  p.pad_top = c.pad_top;
  p.pad_left = c.pad_left;
  p.out_height = c.out_height;
  p.out_width = c.out_width;
  return p;
}

std::string FromC(const bnnedge_transform& c, int64_t channels, bnnedge::OutputTransform* t) {
  if (c.kind < BNNEDGE_SUMS || c.kind > BNNEDGE_BITS) {
    return "kind must be 0 (sums), 1 (float), 2 (int8) or 3 (bits), got " + std::to_string(c.kind);
  }
  t->kind = static_cast<bnnedge::OutputKind>(c.kind);
  t->domain = c.doubled_popcount != 0 ? bnnedge::Domain::kDoubledPopcount : bnnedge::Domain::kSum;
  t->layout = c.nchw != 0 ? bnnedge::Layout::kNchw : bnnedge::Layout::kNhwc;
  t->clamp_low = c.clamp_low;
  t->clamp_high = c.clamp_high;
  if (c.multiplier != nullptr) t->multiplier.assign(c.multiplier, c.multiplier + channels);
  if (c.bias != nullptr) t->bias.assign(c.bias, c.bias + channels);
  if (c.threshold != nullptr) t->threshold.assign(c.threshold, c.threshold + channels);
  t->tail.adds_residual = c.adds_residual != 0;
  t->tail.writes_bits = c.writes_bits != 0;
  t->tail.low = c.low;
  t->tail.high = c.high;
  if (c.slope != nullptr) t->tail.slope.assign(c.slope, c.slope + channels);
  if (c.offset != nullptr) t->tail.offset.assign(c.offset, c.offset + channels);
  if (c.limit != nullptr) t->tail.limit.assign(c.limit, c.limit + channels);
  return {};
}

const bnnedge::PackKernel* SelectPackKernel(const char* kernel, std::string* message) {
  const char* name = bnnedge::SelectConvKernel(kernel, message);
  return name == nullptr ? nullptr : &bnnedge::FindPackKernel(name);
}

bool InRange(int64_t value, int64_t least) { return value >= least && value <= INT32_MAX; }

std::string CheckPixels(int64_t batch, int64_t pixels, int64_t channels, int64_t values, int64_t words) {
  // The counts come from arrays, so products that differ by a multiple of 2^64 are no concern below 2^62.
  if (!InRange(batch, 1) || !InRange(pixels, 1) || !InRange(channels, 1) || batch * pixels > INT64_MAX / channels) {
    return "batch, pixels and channels must be in [1, 2^31 - 1], got " + std::to_string(batch) + ", " +
           std::to_string(pixels) + ", " + std::to_string(channels);
  }
  std::string error = CheckCount("values", batch * pixels * channels, values);
  if (error.empty()) error = CheckCount("words", batch * pixels * bnnedge::WordsFor(channels), words);
  return error;
}

std::string CheckPool(const bnnedge_bmaxpool2d_params& p) {
  for (const int64_t value : {p.batch, p.in_height, p.in_width, p.words, p.kernel_height, p.kernel_width,
                              p.stride_height, p.stride_width, p.out_height, p.out_width}) {
    if (!InRange(value, 1)) return "pool sizes must be in [1, 2^31 - 1], got " + std::to_string(value);
  }
  if (p.batch * p.in_height > INT32_MAX || p.in_width * p.words > INT32_MAX || p.batch * p.out_height > INT32_MAX ||
      p.out_width * p.words > INT32_MAX) {
    return "the tensors are too large";
  }
  // Each window holds a pixel: the first one ends behind the border, the last one starts before it.
  if (!InRange(p.pad_top, 0) || p.pad_top >= p.kernel_height || !InRange(p.pad_left, 0) ||
      p.pad_left >= p.kernel_width || (p.out_height - 1) * p.stride_height - p.pad_top >= p.in_height ||
      (p.out_width - 1) * p.stride_width - p.pad_left >= p.in_width) {
    return "a pool window holds no pixel; the padding must be below the kernel and the output must fit the input";
  }
  return {};
}

}  // namespace

int32_t bnnedge_abi_version(void) { return BNNEDGE_ABI_VERSION; }

int32_t bnnedge_bit_layout_version(void) { return bnnedge::kBitLayoutVersion; }

const char* bnnedge_bconv2d_kernel_name(int32_t index) {
  const auto& names = bnnedge::ConvKernelNames();
  return index < 0 || static_cast<size_t>(index) >= names.size() ? nullptr : names[static_cast<size_t>(index)];
}

const char* bnnedge_stem_kernel_name(const char* kernel) {
  std::string message;
  const char* const name = bnnedge::SelectConvKernel(kernel, &message);
  if (name == nullptr) return nullptr;
  const bnnedge::StemKernel* const table = bnnedge::FindStemKernel(name);
  return table == nullptr ? name : table->name;  // "reference" has no table
}

int32_t bnnedge_bconv2d(const bnnedge_bconv2d_params* params, const char* kernel, const uint32_t* input,
                        int64_t input_words, const uint32_t* filter, int64_t filter_words, int32_t* sums,
                        int64_t sum_count, char* error, size_t error_size) {
  if (params == nullptr || input == nullptr || filter == nullptr || sums == nullptr) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "params, input, filter and sums must not be NULL", error, error_size);
  }
  return Guard(error, error_size, [&](std::string* message) {
    const bnnedge::BConv2dParams p = FromC(*params);
    bnnedge::BConv2dSizes sizes{};
    *message = bnnedge::CheckBConv2d(p, &sizes);
    if (message->empty()) *message = CheckCount("input", sizes.input_words, input_words);
    if (message->empty()) *message = CheckCount("filter", sizes.filter_words, filter_words);
    if (message->empty()) *message = CheckCount("sums", sizes.outputs, sum_count);
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    const char* name = bnnedge::SelectConvKernel(kernel, message);
    if (name == nullptr) return BNNEDGE_UNKNOWN_KERNEL;
    const auto conv = bnnedge::Conv::Create(p, filter, bnnedge::OutputTransform{}, name, message);
    if (conv == nullptr) return BNNEDGE_INVALID_ARGUMENT;
    const bnnedge::AlignedBytes workspace = bnnedge::AllocateAligned(conv->WorkspaceBytes());
    conv->Run({input, sums}, workspace.get(), bnnedge::Sequential());
    return BNNEDGE_OK;
  });
}

struct bnnedge_conv {
  std::unique_ptr<bnnedge::Conv> conv;
  bnnedge::OutputTransform transform;  // without its vectors
  bnnedge::AlignedBytes workspace;
  bnnedge::AlignedBuffer words;  // of float inputs
  bnnedge::ThreadPool pool;

  explicit bnnedge_conv(int threads) : pool(threads) {}

  int64_t InputPixels() const {
    const bnnedge::BConv2dParams& p = conv->params();
    return p.batch * p.in_height * p.in_width;
  }

  int64_t OutputPixels() const {
    const bnnedge::BConv2dParams& p = conv->params();
    return p.batch * p.OutHeight() * p.OutWidth();
  }

  int64_t OutputBytes() const {
    const bnnedge::BConv2dParams& p = conv->params();
    const int64_t pixels = OutputPixels();
    switch (transform.kind) {
      case bnnedge::OutputKind::kInt8:
        return pixels * p.out_channels;
      case bnnedge::OutputKind::kBits:
        return pixels * bnnedge::WordsFor(p.out_channels) * 4;
      default:
        return pixels * p.out_channels * 4;
    }
  }

  std::string CheckOutputs(int64_t output_bytes, int64_t residual_count, int64_t bit_words) const {
    if (output_bytes != OutputBytes()) {
      return "output must have " + std::to_string(OutputBytes()) + " bytes, got " + std::to_string(output_bytes);
    }
    const int64_t channels = conv->params().out_channels, pixels = OutputPixels();
    const std::string error =
        CheckCount("residual", transform.tail.adds_residual ? pixels * channels : 0, residual_count);
    if (!error.empty()) return error;
    return CheckCount("bits", transform.tail.writes_bits ? pixels * bnnedge::WordsFor(channels) : 0, bit_words);
  }

  // Packs `values`, a piece for each thread, and returns the words.
  const uint32_t* Pack(const float* values) {
    const int64_t pixels = InputPixels(), channels = conv->params().channels;
    struct Job {
      const bnnedge::PackKernel* packer;
      const float* values;
      uint32_t* words;
      int64_t pixels, channels, pieces;
    };
    void* const room = words.AtLeast(pixels * bnnedge::WordsFor(channels) * 4);
    Job job{&bnnedge::FindPackKernel(conv->kernel_name()),
            values,
            static_cast<uint32_t*>(room),
            pixels,
            channels,
            pool.threads()};
    const bnnedge::Parallel parallel = pool.AsParallel();
    parallel.run(
        parallel.host, job.pieces,
        [](void* context, int64_t i) {
          const Job& j = *static_cast<const Job*>(context);
          const int64_t first = j.pixels * i / j.pieces, count = j.pixels * (i + 1) / j.pieces - first;
          j.packer->pack_nhwc_float(j.values + first * j.channels, 0.0f, count, j.channels,
                                    j.words + first * bnnedge::WordsFor(j.channels));
        },
        &job);
    return job.words;
  }
};

int32_t bnnedge_conv_create(const bnnedge_bconv2d_params* params, const uint32_t* filter, int64_t filter_words,
                            const bnnedge_transform* transform, const char* kernel, int32_t threads,
                            bnnedge_conv** conv, char* error, size_t error_size) {
  if (params == nullptr || filter == nullptr || transform == nullptr || conv == nullptr) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "params, filter, transform and conv must not be NULL", error, error_size);
  }
  return Guard(error, error_size, [&](std::string* message) {
    const bnnedge::BConv2dParams p = FromC(*params);
    bnnedge::BConv2dSizes sizes{};
    *message = bnnedge::CheckBConv2d(p, &sizes);
    if (message->empty()) *message = CheckCount("filter", sizes.filter_words, filter_words);
    if (threads < 1 || threads > kMaxThreads) {
      *message = "threads must be in [1, " + std::to_string(kMaxThreads) + "], got " + std::to_string(threads);
    }
    bnnedge::OutputTransform t;
    if (message->empty()) *message = FromC(*transform, p.out_channels, &t);
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    const char* name = bnnedge::SelectConvKernel(kernel, message);
    if (name == nullptr) return BNNEDGE_UNKNOWN_KERNEL;
    auto made = std::make_unique<bnnedge_conv>(threads);
    made->conv = bnnedge::Conv::Create(p, filter, t, name, message);
    if (made->conv == nullptr) return BNNEDGE_INVALID_ARGUMENT;
    made->transform.kind = t.kind;
    made->transform.tail.adds_residual = t.tail.adds_residual;
    made->transform.tail.writes_bits = t.tail.writes_bits;
    made->workspace = bnnedge::AllocateAligned(made->conv->WorkspaceBytes());
    *conv = made.release();
    return BNNEDGE_OK;
  });
}

void bnnedge_conv_destroy(bnnedge_conv* conv) { delete conv; }

const char* bnnedge_conv_kernel_name(const bnnedge_conv* conv) {
  return conv == nullptr ? nullptr : conv->conv->kernel_name();
}

int32_t bnnedge_conv_resize(bnnedge_conv* conv, int64_t batch, int64_t height, int64_t width, char* error,
                            size_t error_size) {
  if (conv == nullptr) return Fail(BNNEDGE_INVALID_ARGUMENT, "conv must not be NULL", error, error_size);
  return Guard(error, error_size, [&](std::string* message) {
    const bnnedge::BConv2dParams before = conv->conv->params();
    *message = conv->conv->Resize(batch, height, width);
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    try {
      conv->workspace = bnnedge::AllocateAligned(conv->conv->WorkspaceBytes());
    } catch (...) {  // the old workspace serves the old size
      conv->conv->Resize(before.batch, before.in_height, before.in_width);
      throw;
    }
    return BNNEDGE_OK;
  });
}

int32_t bnnedge_conv_run(bnnedge_conv* conv, int32_t input_is_float, const void* input, int64_t input_count,
                         void* output, int64_t output_bytes, const float* residual, int64_t residual_count,
                         uint32_t* bits, int64_t bit_words, char* error, size_t error_size) {
  if (conv == nullptr || input == nullptr || output == nullptr || (residual == nullptr && residual_count != 0) ||
      (bits == nullptr && bit_words != 0)) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "conv and arrays with elements must not be NULL", error, error_size);
  }
  return Guard(error, error_size, [&](std::string* message) {
    const bnnedge::BConv2dParams& p = conv->conv->params();
    *message = CheckCount("input", conv->InputPixels() * (input_is_float ? p.channels : p.InWords()), input_count);
    if (message->empty()) *message = conv->CheckOutputs(output_bytes, residual_count, bit_words);
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    const uint32_t* words =
        input_is_float ? conv->Pack(static_cast<const float*>(input)) : static_cast<const uint32_t*>(input);
    conv->conv->Run({words, output, residual, bits}, conv->workspace.get(), conv->pool.AsParallel());
    return BNNEDGE_OK;
  });
}

int32_t bnnedge_pack(int32_t source, const char* kernel, const void* values, int64_t value_count, int32_t zero_point,
                     int64_t batch, int64_t pixels, int64_t channels, uint32_t* words, int64_t word_count, char* error,
                     size_t error_size) {
  if (values == nullptr || words == nullptr) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "values and words must not be NULL", error, error_size);
  }
  return Guard(error, error_size, [&](std::string* message) {
    *message = CheckPixels(batch, pixels, channels, value_count, word_count);
    if (source == BNNEDGE_NHWC_INT8 && (zero_point < INT8_MIN || zero_point > INT8_MAX)) {
      *message = "zero_point must be in [-128, 127], got " + std::to_string(zero_point);
    }
    if (source < BNNEDGE_NHWC_FLOAT || source > BNNEDGE_NCHW_FLOAT) {
      *message = "source must be 0 (NHWC float), 1 (NHWC int8) or 2 (NCHW float), got " + std::to_string(source);
    }
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    const bnnedge::PackKernel* packer = SelectPackKernel(kernel, message);
    if (packer == nullptr) return BNNEDGE_UNKNOWN_KERNEL;
    if (source == BNNEDGE_NHWC_FLOAT) {
      packer->pack_nhwc_float(static_cast<const float*>(values), 0.0f, batch * pixels, channels, words);
    } else if (source == BNNEDGE_NHWC_INT8) {
      packer->pack_nhwc_int8(static_cast<const int8_t*>(values), zero_point, batch * pixels, channels, words);
    } else {
      for (int64_t n = 0; n < batch; ++n) {
        packer->pack_nchw_float(static_cast<const float*>(values) + n * channels * pixels, channels, pixels,
                                words + n * pixels * bnnedge::WordsFor(channels));
      }
    }
    return BNNEDGE_OK;
  });
}

int32_t bnnedge_unpack(const char* kernel, const uint32_t* words, int64_t word_count, int64_t pixels, int64_t channels,
                       float* values, int64_t value_count, char* error, size_t error_size) {
  if (words == nullptr || values == nullptr) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "words and values must not be NULL", error, error_size);
  }
  return Guard(error, error_size, [&](std::string* message) {
    *message = CheckPixels(1, pixels, channels, value_count, word_count);
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    const bnnedge::PackKernel* packer = SelectPackKernel(kernel, message);
    if (packer == nullptr) return BNNEDGE_UNKNOWN_KERNEL;
    packer->unpack_nhwc(words, pixels, channels, values);
    return BNNEDGE_OK;
  });
}

int32_t bnnedge_bmaxpool2d(const bnnedge_bmaxpool2d_params* params, const uint32_t* input, int64_t input_words,
                           uint32_t* output, int64_t output_words, char* error, size_t error_size) {
  if (params == nullptr || input == nullptr || output == nullptr) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "params, input and output must not be NULL", error, error_size);
  }
  return Guard(error, error_size, [&](std::string* message) {
    const bnnedge_bmaxpool2d_params& c = *params;
    *message = CheckPool(c);
    if (message->empty()) *message = CheckCount("input", c.batch * c.in_height * c.in_width * c.words, input_words);
    if (message->empty()) {
      *message = CheckCount("output", c.batch * c.out_height * c.out_width * c.words, output_words);
    }
    if (!message->empty()) return BNNEDGE_INVALID_ARGUMENT;
    bnnedge::BMaxPool2d(FromC(c), input, output);
    return BNNEDGE_OK;
  });
}

int64_t bnnedge_peak(const char* kernel, int64_t rounds) {
  std::string message;
  const char* name = bnnedge::SelectConvKernel(kernel, &message);
  const bnnedge::ConvKernel* table = name == nullptr ? nullptr : bnnedge::FindConvKernel(name);
  return table == nullptr || table->peak == nullptr ? 0 : table->peak(rounds);
}
