#include "stem_reference.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace bnnedge {
namespace {

constexpr int64_t kLeastCode = -128, kMostCode = 127;

// Rounds halves to even, whatever the rounding mode of the thread is.
double RoundToEven(double value) {
  const double down = std::floor(value), rest = value - down;
  if (rest != 0.5) return rest < 0.5 ? down : down + 1.0;
  return std::fmod(down, 2.0) == 0.0 ? down : down + 1.0;
}

class ReferenceStem : public Stem {
 public:
  ReferenceStem(const StemParams& params, const StemWeights& weights, Tail tail) : p_(params), tail_(std::move(tail)) {
    const int64_t outputs = p_.out_channels;
    filter_.assign(weights.filter, weights.filter + outputs * p_.FanIn());
    scale_.assign(weights.filter_scale, weights.filter_scale + outputs);
    bias_.assign(weights.bias, weights.bias + outputs);
  }

  const StemParams& params() const override { return p_; }
  const char* kernel_name() const override { return "reference"; }

  std::string Fit(StemSize* size) const override {
    std::string error = FitStem(p_, size);
    if (!error.empty()) return error;
    const int64_t quantized = size->folded_height * size->folded_width * p_.FilterChannels();
    size->workspace_bytes =
        quantized + (size->conv_height * size->conv_width + size->out_height * size->out_width) * p_.out_channels;
    return {};
  }

  void Run(const StemSize& size, const StemTensors& tensors, void* workspace, const Parallel&) const override {
    const int64_t quantized = size.folded_height * size.folded_width * p_.FilterChannels();
    const int64_t convolved = size.conv_height * size.conv_width * p_.out_channels;
    const int64_t pooled = size.out_height * size.out_width * p_.out_channels;
    auto* const first = static_cast<int8_t*>(workspace);
    for (int64_t n = 0; n < size.batch; ++n) {
      int8_t* const codes = tensors.quantized == nullptr ? first : tensors.quantized + n * quantized;
      int8_t* const sums = tensors.convolved == nullptr ? first + quantized : tensors.convolved + n * convolved;
      int8_t* const best = tensors.pooled == nullptr ? first + quantized + convolved : tensors.pooled + n * pooled;
      Quantize(size, tensors.image + n * size.in_height * size.in_width * p_.channels, codes);
      Convolve(size, codes, sums);
      Pool(size, sums, best);
      Store(size, tensors, n, best);
    }
  }

 private:
  void Quantize(const StemSize& size, const float* image, int8_t* codes) const {
    for (int64_t i = 0; i < size.folded_height; ++i) {
      for (int64_t j = 0; j < size.folded_width; ++j) {
        for (int64_t k = 0; k < p_.FilterChannels(); ++k) {
          const int64_t phase = k / p_.channels, c = k % p_.channels;
          const int64_t y = p_.fold * i + phase / p_.fold, x = p_.fold * j + phase % p_.fold;
          const int64_t at = p_.layout == Layout::kNchw ? (c * size.in_height + y) * size.in_width + x
                                                        : (y * size.in_width + x) * p_.channels + c;
          *codes++ = Quantized(image[at]);
        }
      }
    }
  }

  int8_t Quantized(float x) const {
    const float v = x / p_.source.scale;
    if (std::isnan(v)) return kLeastCode;
    const double bounded = std::min(std::max(static_cast<double>(v), -1000.0), 1000.0);
    const double whole = p_.arithmetic == Arithmetic::kFloat ? RoundToEven(bounded) : std::round(bounded);
    return static_cast<int8_t>(std::clamp(static_cast<int64_t>(whole) + p_.source.zero_point, kLeastCode, kMostCode));
  }

  void Convolve(const StemSize& size, const int8_t* codes, int8_t* out) const {
    for (int64_t y = 0; y < size.conv_height; ++y) {
      for (int64_t x = 0; x < size.conv_width; ++x) {
        for (int64_t o = 0; o < p_.out_channels; ++o) *out++ = Code(Sum(size, codes, y, x, o), o);
      }
    }
  }

  int32_t Sum(const StemSize& size, const int8_t* codes, int64_t y, int64_t x, int64_t o) const {
    const int64_t channels = p_.FilterChannels();
    auto sum = static_cast<uint32_t>(bias_[static_cast<size_t>(o)]);
    const int8_t* tap = filter_.data() + o * p_.FanIn();
    for (int64_t ky = 0; ky < p_.conv.kernel[0]; ++ky) {
      for (int64_t kx = 0; kx < p_.conv.kernel[1]; ++kx, tap += channels) {
        const int64_t row = y * p_.conv.strides[0] - p_.conv.pads[0] + ky;
        const int64_t column = x * p_.conv.strides[1] - p_.conv.pads[1] + kx;
        if (row < 0 || row >= size.folded_height || column < 0 || column >= size.folded_width) continue;
        const int8_t* const pixel = codes + (row * size.folded_width + column) * channels;
        for (int64_t k = 0; k < channels; ++k) {
          sum += static_cast<uint32_t>((pixel[k] - p_.source.zero_point) * tap[k]);
        }
      }
    }
    return static_cast<int32_t>(sum);
  }

  int8_t Code(int32_t sum, int64_t o) const {
    const float filter_scale = scale_[static_cast<size_t>(o)];
    double value = 0.0;
    if (p_.arithmetic == Arithmetic::kFloat) {
      const float product = static_cast<float>(sum) * FloatMultiplier(p_, filter_scale);
      value = RoundToEven(std::min(std::max(static_cast<double>(product), -1000.0), 1000.0));
    } else {
      int32_t mantissa = 0, shift = 0;
      FixedPointMultiplier(p_, filter_scale, &mantissa, &shift);
      const auto shifted = static_cast<int32_t>(static_cast<uint32_t>(sum) << std::max(shift, 0));
      const int64_t high = (int64_t{shifted} * mantissa + (int64_t{1} << 30)) >> 31;
      value = std::round(std::ldexp(static_cast<double>(high), std::min(shift, 0)));
      value = std::min(std::max(value, -1000.0), 1000.0);
    }
    const int64_t code = static_cast<int64_t>(value) + p_.target.zero_point;
    return static_cast<int8_t>(std::clamp<int64_t>(code, p_.low_code, p_.high_code));
  }

  void Pool(const StemSize& size, const int8_t* codes, int8_t* out) const {
    const int64_t channels = p_.out_channels;
    if (!p_.pools) {
      std::copy(codes, codes + size.conv_height * size.conv_width * channels, out);
      return;
    }
    for (int64_t y = 0; y < size.out_height; ++y) {
      for (int64_t x = 0; x < size.out_width; ++x) {
        for (int64_t o = 0; o < channels; ++o) {
          int8_t best = kLeastCode;
          for (int64_t ky = 0; ky < p_.pool.kernel[0]; ++ky) {
            for (int64_t kx = 0; kx < p_.pool.kernel[1]; ++kx) {
              const int64_t row = y * p_.pool.strides[0] - p_.pool.pads[0] + ky;
              const int64_t column = x * p_.pool.strides[1] - p_.pool.pads[1] + kx;
              if (row < 0 || row >= size.conv_height || column < 0 || column >= size.conv_width) continue;
              best = std::max(best, codes[(row * size.conv_width + column) * channels + o]);
            }
          }
          *out++ = best;
        }
      }
    }
  }

  void Store(const StemSize& size, const StemTensors& tensors, int64_t image, const int8_t* codes) const {
    const int64_t pixels = size.out_height * size.out_width, channels = p_.out_channels;
    const int64_t words = WordsFor(channels);
    for (int64_t i = image * pixels; i < (image + 1) * pixels; ++i, codes += channels) {
      if (tensors.bits != nullptr) std::fill_n(tensors.bits + i * words, words, 0u);
      for (int64_t o = 0; o < channels; ++o) {
        const auto at = static_cast<size_t>(o);
        float y = static_cast<float>(codes[o] - p_.target.zero_point) * p_.target.scale;
        if (tail_.adds_residual) y += tensors.residual[i * channels + o];
        if (!tail_.slope.empty()) y = y < 0.0f ? tail_.slope[at] * y : y;
        if (!tail_.offset.empty()) y += tail_.offset[at];
        y = y < tail_.low ? tail_.low : y;
        y = y > tail_.high ? tail_.high : y;
        if (tensors.output != nullptr) tensors.output[i * channels + o] = y;
        const float limit = tail_.limit.empty() ? 0.0f : tail_.limit[at];
        if (tail_.writes_bits && y < limit) tensors.bits[i * words + o / kWordBits] |= uint32_t{1} << o % kWordBits;
      }
    }
  }

  const StemParams p_;
  const Tail tail_;
  std::vector<int8_t> filter_;
  std::vector<float> scale_;
  std::vector<int32_t> bias_;
};

}  // namespace

float FloatMultiplier(const StemParams& params, float filter_scale) {
  return params.source.scale * filter_scale / params.target.scale;
}

void FixedPointMultiplier(const StemParams& params, float filter_scale, int32_t* mantissa, int32_t* shift) {
  const double multiplier = static_cast<double>(params.source.scale) * static_cast<double>(filter_scale) /
                            static_cast<double>(params.target.scale);
  int exponent = 0;
  auto m = static_cast<int64_t>(std::round(std::frexp(multiplier, &exponent) * 0x1p31));
  if (m == int64_t{1} << 31) {
    m /= 2;
    ++exponent;
  }
  if (multiplier == 0.0 || exponent < -31) m = exponent = 0;
  *mantissa = static_cast<int32_t>(m);
  *shift = exponent;
}

std::unique_ptr<Stem> MakeReferenceStem(const StemParams& params, const StemWeights& weights, const Tail& tail) {
  return std::make_unique<ReferenceStem>(params, weights, tail);
}

}  // namespace bnnedge
