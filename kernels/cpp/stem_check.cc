#include "stem_check.h"

#include <algorithm>
#include <cmath>

#include "bnnedge/output_size.h"
#include "reference/stem_reference.h"
#include "tail.h"

namespace bnnedge {
namespace {

constexpr int64_t kMaxDimension = (int64_t{1} << 31) - 1;
// A larger shift moves the sum out of its 32 bits.
constexpr int32_t kMostShift = 30;

std::string CheckWindow(const char* name, const KernelWindow& window) {
  for (int axis = 0; axis < 2; ++axis) {
    for (const int64_t value : {window.kernel[axis], window.strides[axis]}) {
      if (value < 1 || value > kMaxDimension) {
        return std::string(name) + " kernel and strides must be in [1, 2^31 - 1], found " + std::to_string(value);
      }
    }
    for (const int64_t pad : {window.pads[axis], window.pads[axis + 2]}) {
      if (pad < 0 || pad >= window.kernel[axis]) {
        return std::string(name) + " pads must be in [0, kernel), found " + std::to_string(pad);
      }
    }
  }
  return {};
}

std::string CheckCodes(const char* name, const Quantization& codes) {
  if (!(codes.scale > 0.0f) || !std::isfinite(codes.scale)) {
    return std::string("the scale of the ") + name + " must be finite and above 0, found " +
           std::to_string(codes.scale);
  }
  if (codes.zero_point < INT8_MIN || codes.zero_point > INT8_MAX) {
    return std::string("the zero point of the ") + name + " is no code, found " + std::to_string(codes.zero_point);
  }
  return {};
}

std::string CheckScale(const StemParams& p, float filter_scale) {
  const std::string found = ", found " + std::to_string(filter_scale);
  if (!(filter_scale >= 0.0f) || !std::isfinite(filter_scale)) {
    return "the scales of the filters must be finite and not below 0" + found;
  }
  int32_t mantissa = 0, shift = 0;
  if (p.arithmetic == Arithmetic::kFixedPoint) FixedPointMultiplier(p, filter_scale, &mantissa, &shift);
  if (!std::isfinite(FloatMultiplier(p, filter_scale)) || shift > kMostShift) {
    return "the scale of a filter is too large for its input's and output's" + found;
  }
  return {};
}

}  // namespace

int64_t BoundedProduct(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (factor != 0 && product > kMostStemBytes / factor) return kMostStemBytes + 1;
    product *= factor;
  }
  return product;
}

std::string CheckStem(const StemParams& p, const StemWeights& weights, const Tail& tail) {
  for (const int64_t value : {p.channels, p.out_channels}) {
    if (value < 1 || value > kMaxDimension) return "channels must be in [1, 2^31 - 1], found " + std::to_string(value);
  }
  if (p.fold != 1 && p.fold != 2) return "an image is folded by 1 or 2, found " + std::to_string(p.fold);
  std::string error = CheckWindow("convolution", p.conv);
  if (error.empty() && p.pools) error = CheckWindow("pool", p.pool);
  if (error.empty()) error = CheckCodes("input", p.source);
  if (error.empty()) error = CheckCodes("output", p.target);
  if (error.empty()) error = CheckTail(tail, p.out_channels);
  if (!error.empty()) return error;
  if (p.low_code < INT8_MIN || p.high_code > INT8_MAX || p.low_code > p.high_code) {
    return "the range of codes is empty";
  }
  const KernelWindow& conv = p.conv;
  if (BoundedProduct({p.out_channels, conv.kernel[0], conv.kernel[1], p.fold * p.fold, p.channels}) > kMostStemBytes) {
    return "the filter is too large";
  }
  for (int64_t o = 0; o < p.out_channels; ++o) {
    error = CheckScale(p, weights.filter_scale[o]);
    if (!error.empty()) return error;
  }
  return {};
}

int64_t KernelWindow::Count(int axis, int64_t size) const {
  return OutputSize(size, kernel[axis], strides[axis], 1, pads[axis] + pads[axis + 2]);
}

std::string FitStem(const StemParams& p, StemSize* size) {
  for (const int64_t value : {size->batch, size->in_height, size->in_width}) {
    if (value < 1 || value > kMaxDimension) {
      return "batch, height and width must be in [1, 2^31 - 1], found " + std::to_string(value);
    }
  }
  // Made for an error only: this runs before each inference.
  const auto found = [size] {
    return "an input of " + std::to_string(size->in_height) + " x " + std::to_string(size->in_width);
  };
  if (size->in_height % p.fold != 0 || size->in_width % p.fold != 0) return found() + " cannot be folded";
  size->folded_height = size->in_height / p.fold;
  size->folded_width = size->in_width / p.fold;
  size->conv_height = p.conv.Count(0, size->folded_height);
  size->conv_width = p.conv.Count(1, size->folded_width);
  if (size->conv_height < 1 || size->conv_width < 1) return "the filter does not fit into " + found();
  size->out_height = p.pools ? p.pool.Count(0, size->conv_height) : size->conv_height;
  size->out_width = p.pools ? p.pool.Count(1, size->conv_width) : size->conv_width;
  if (size->out_height < 1 || size->out_width < 1) return "the pool does not fit behind " + found();
  if (BoundedProduct({size->batch, size->in_height, size->in_width, p.channels}) > kMostStemBytes ||
      BoundedProduct({size->batch, size->conv_height, size->conv_width, p.out_channels}) > kMostStemBytes ||
      BoundedProduct({size->batch, size->out_height, size->out_width, p.out_channels}) > kMostStemBytes) {
    return found() + " is too large";
  }
  return {};
}

}  // namespace bnnedge
