#include "bnnedge/bconv2d.h"

#include <initializer_list>

namespace bnnedge {
namespace {

// Keeps every later sum and product of two or three dimensions inside int64.
constexpr int64_t kMaxDimension = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxElements = int64_t{1} << 48;

struct Field {
  const char* name;
  int64_t value;
  int64_t least;
};

// The product, or -1 if it exceeds kMaxElements. Factors are in [1, kMaxDimension].
int64_t Elements(std::initializer_list<int64_t> dimensions) {
  int64_t product = 1;
  for (const int64_t dimension : dimensions) {
    if (product > kMaxElements / dimension) return -1;
    product *= dimension;
  }
  return product;
}

std::string CheckFields(const BConv2dParams& p) {
  const Field fields[] = {
      {"batch", p.batch, 1},
      {"in_height", p.in_height, 1},
      {"in_width", p.in_width, 1},
      {"channels", p.channels, 1},
      {"out_channels", p.out_channels, 1},
      {"kernel_height", p.kernel_height, 1},
      {"kernel_width", p.kernel_width, 1},
      {"stride_height", p.stride_height, 1},
      {"stride_width", p.stride_width, 1},
      {"dilation_height", p.dilation_height, 1},
      {"dilation_width", p.dilation_width, 1},
      {"pad_top", p.pad_top, 0},
      {"pad_bottom", p.pad_bottom, 0},
      {"pad_left", p.pad_left, 0},
      {"pad_right", p.pad_right, 0},
      {"groups", p.groups, 1},
  };
  for (const Field& field : fields) {
    if (field.value < field.least || field.value > kMaxDimension) {
      return std::string(field.name) + " must be in [" + std::to_string(field.least) + ", 2^31 - 1], got " +
             std::to_string(field.value);
    }
  }
  if (p.pad_value != 0 && p.pad_value != 1) return "pad_value must be 0 or 1, got " + std::to_string(p.pad_value);
  return {};
}

std::string CheckGroups(const BConv2dParams& p) {
  const std::string groups = std::to_string(p.groups) + " groups";
  if (p.channels % p.groups != 0) return std::to_string(p.channels) + " channels do not divide into " + groups;
  if (p.out_channels % p.groups != 0) {
    return std::to_string(p.out_channels) + " output channels do not divide into " + groups;
  }
  if (p.groups > 1 && p.GroupChannels() % kWordBits != 0) {
    return "with groups, channels per group must be a multiple of 32, got " + std::to_string(p.GroupChannels());
  }
  return {};
}

}  // namespace

std::string CheckBConv2d(const BConv2dParams& p, BConv2dSizes* sizes) {
  std::string error = CheckFields(p);
  if (error.empty()) error = CheckGroups(p);
  if (!error.empty()) return error;
  const int64_t fan_in = Elements({p.kernel_height, p.kernel_width, p.GroupChannels()});
  if (fan_in < 0 || fan_in > kMaxDimension) return "one output sums more products than int32 holds";
  if (p.OutHeight() < 1 || p.OutWidth() < 1) {
    return "the window does not fit into the padded image; enlarge the input or the padding";
  }
  sizes->input_words = Elements({p.batch, p.in_height, p.in_width, p.InWords()});
  sizes->filter_words = Elements({p.out_channels, p.kernel_height, p.kernel_width, p.FilterWords()});
  sizes->outputs = Elements({p.batch, p.OutHeight(), p.OutWidth(), p.out_channels});
  if (sizes->input_words < 0 || sizes->filter_words < 0 || sizes->outputs < 0) return "the tensors are too large";
  return {};
}

}  // namespace bnnedge
