// A binary convolution that is prepared once and run many times, for both plug-ins. s is the sum of one output, as
// bnnedge/bconv2d.h defines it, K the number of its products, and p the popcount of (input xor filter).
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bnnedge/bconv2d.h"

namespace bnnedge {

// How the host runs pieces of work. `run` calls piece(context, i) for i in [0, count), in any order, possibly at once,
// and returns when all are done. `threads`, 1 or more, is the number of threads that the host expects to use.
struct Parallel {
  void (*run)(void* host, int64_t count, void (*piece)(void* context, int64_t i), void* context);
  void* host;
  int threads;
};

// Runs the pieces one after another.
Parallel Sequential();

enum class OutputKind {
  kSums,   // int32 [N, OH, OW, O]: the accumulator v
  kFloat,  // float [N, OH, OW, O] (or NCHW): float(clamp(v)) * multiplier[o] + bias[o], product and sum rounded apart
  kInt8,   // int8 [N, OH, OW, O]: the same float, rounded half away from zero and saturated
  kBits,   // uint32 [N, OH, OW, words(O)]: bit 1 where v < threshold[o]
};

// The domain of the accumulator v.
enum class Domain {
  kSum,              // v = s: the convolution of +-1 values, as in ONNX and in the export graph
  kDoubledPopcount,  // v = K - s, which is 2 p without padding, as in Larq Compute Engine. kBits sets the bit where
                     // v > threshold[o] in this domain.
};

enum class Layout { kNhwc, kNchw };

// The tail of a residual block: steps that a kFloat value y in NHWC goes through before it is stored, in this order,
// each rounded by itself.
struct Tail {
  bool adds_residual = false;                           // y += residual, at the same place
  std::vector<float> slope;                             // [O] or empty: y = y < 0 ? slope[o] * y : y
  std::vector<float> offset;                            // [O] or empty: y += offset[o]
  float low = -std::numeric_limits<float>::infinity();  // y = min(max(y, low), high); a NaN stays
  float high = std::numeric_limits<float>::infinity();
  bool writes_bits = false;  // stores uint32 [N, OH, OW, words(O)] as well: bit 1 where y < limit[o]
  std::vector<float> limit;  // [O] or empty: 0

  bool IsEmpty() const;
};

// How an accumulator becomes an output.
struct OutputTransform {
  OutputKind kind = OutputKind::kSums;
  Domain domain = Domain::kSum;
  Layout layout = Layout::kNhwc;  // kNchw is possible for a kFloat output only
  int32_t clamp_low = INT32_MIN, clamp_high = INT32_MAX;
  std::vector<float> multiplier, bias;  // [O], kFloat and kInt8
  std::vector<int32_t> threshold;       // [O], kBits
  Tail tail;                            // kFloat in NHWC
};

// The tensors that a run reads and writes.
struct ConvTensors {
  const uint32_t* input;            // [N, H, W, InWords], spare bits 0
  void* output;                     // of the transform's kind
  const float* residual = nullptr;  // [N, OH, OW, O], if the tail adds one; may be `output`
  uint32_t* bits = nullptr;         // if the tail writes them
};

// A convolution is immutable after Create, but for Resize: Run may be called from several threads at once with separate
// workspaces.
class Conv {
 public:
  // `filter` [O, kh, kw, FilterWords] is copied and repacked. `kernel` as in SelectConvKernel. Returns nullptr and one
  // sentence in `error` if the parameters, the transform or the kernel's name are wrong. The batch, height
  // and width of `params` are only the first ones: Run takes others.
  static std::unique_ptr<Conv> Create(const BConv2dParams& params, const uint32_t* filter,
                                      const OutputTransform& transform, const char* kernel, std::string* error);
  virtual ~Conv() = default;

  // Checks another input size. Returns an empty string, or what is wrong with it.
  virtual std::string Resize(int64_t batch, int64_t height, int64_t width) = 0;
  virtual const BConv2dParams& params() const = 0;
  virtual const char* kernel_name() const = 0;

  // Bytes that Run needs at `workspace` (64-byte aligned) for the current size. Runs do not need what others left
  // there.
  virtual int64_t WorkspaceBytes() const = 0;

  // Does not allocate.
  virtual void Run(const ConvTensors& tensors, void* workspace, const Parallel& parallel) const = 0;
};

// Kernels of Conv that this CPU supports, fastest first; the last one is "reference". BNNEDGE_KERNEL overrides.
const std::vector<const char*>& ConvKernelNames();

// ---- Packing: bit 1 where a value is below its limit; -0.0 and NaN give 0 with a limit of 0 ----

// float or int8 [pixels, channels] -> uint32 [pixels, words(channels)].
void PackNhwc(const float* values, float limit, int64_t pixels, int64_t channels, uint32_t* words);
// limits [channels]
void PackNhwcByChannel(const float* values, const float* limits, int64_t pixels, int64_t channels, uint32_t* words);
inline void PackNhwc(const float* values, int64_t pixels, int64_t channels, uint32_t* words) {
  PackNhwc(values, 0.0f, pixels, channels, words);
}
void PackNhwc(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words);
// float [N, C, pixels] -> uint32 [N, pixels, words(C)].
void PackNchw(const float* values, int64_t batch, int64_t channels, int64_t pixels, uint32_t* words);
// uint32 [pixels, words] -> float +-1 [pixels, channels].
void UnpackNhwc(const uint32_t* words, int64_t pixels, int64_t channels, float* values);

// The maximum of signs over windows of packed pixels, by AND; pixels outside of the image never win.
struct BMaxPoolParams {
  int64_t batch, in_height, in_width, words;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, out_height, out_width;
};
void BMaxPool2d(const BMaxPoolParams& params, const uint32_t* input, uint32_t* output);

}  // namespace bnnedge
