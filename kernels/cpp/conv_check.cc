#include "conv_check.h"

#include <algorithm>
#include <cmath>

#include "tail.h"

namespace bnnedge {
namespace {

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

std::string CheckConvTail(const OutputTransform& t, const BConv2dParams& p) {
  if (t.tail.IsEmpty()) return {};
  if (t.kind != OutputKind::kFloat || t.layout != Layout::kNhwc) return "only float outputs in NHWC can have a tail";
  std::string error = CheckTail(t.tail, p.out_channels);
  if (error.empty() && t.tail.writes_bits && p.groups > 1 && p.out_channels / p.groups % kWordBits != 0) {
    error = "a tail writes bits only where groups fill whole words, found " +
            std::to_string(p.out_channels / p.groups) + " channels a group";
  }
  return error;
}

}  // namespace

std::string CheckOutputTransform(const OutputTransform& t, const BConv2dParams& p) {
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
  return error.empty() ? CheckConvTail(t, p) : error;
}

}  // namespace bnnedge
