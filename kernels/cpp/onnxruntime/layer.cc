#include "layer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "bnnedge/output_size.h"

namespace bnnedge {
namespace {

constexpr int64_t kMaxDimension = (int64_t{1} << 31) - 1;
// A larger pad makes no sense, and the size of the output must not come from the file alone.
constexpr int64_t kMaxPad = int64_t{1} << 20;

std::string CheckRange(const char* name, const int64_t* values, int count, int64_t least, int64_t most) {
  for (int i = 0; i < count; ++i) {
    if (values[i] < least || values[i] > most) {
      return std::string(name) + " must be in [" + std::to_string(least) + ", " + std::to_string(most) + "], found " +
             std::to_string(values[i]);
    }
  }
  return {};
}

std::string CheckWeights(const ConvAttributes& attributes, const Weights& weights) {
  const int64_t* d = weights.dimensions;
  std::string error = CheckRange("the dimensions of W", d, 4, 1, kMaxDimension);
  if (!error.empty()) return error;
  const int64_t bytes = WordsFor(attributes.channels) * int64_t{sizeof(uint32_t)};
  if (d[3] != bytes) {
    return "W must hold " + std::to_string(bytes) + " bytes a tap for " + std::to_string(attributes.channels) +
           " channels, found " + std::to_string(d[3]);
  }
  if (d[0] % attributes.group != 0) {
    return "the " + std::to_string(d[0]) + " filters of W do not divide into " + std::to_string(attributes.group) +
           " groups";
  }
  return {};
}

// Reads little-endian bytes as words. Bits behind the last channel have no meaning in the file, and become 0, as a
// filter must have them.
std::vector<uint32_t> FilterWords(const Weights& weights, int64_t channels) {
  const int64_t* d = weights.dimensions;
  const int64_t words = WordsFor(channels), taps = d[0] * d[1] * d[2];
  std::vector<uint32_t> filter(static_cast<size_t>(taps * words));
  for (size_t i = 0; i < filter.size(); ++i) {
    const uint8_t* b = weights.data + 4 * i;
    filter[i] = uint32_t{b[0]} | uint32_t{b[1]} << 8 | uint32_t{b[2]} << 16 | uint32_t{b[3]} << 24;
  }
  if (channels % kWordBits != 0) {
    const uint32_t used = (uint32_t{1} << (channels % kWordBits)) - 1;
    for (size_t i = static_cast<size_t>(words) - 1; i < filter.size(); i += static_cast<size_t>(words)) {
      filter[i] &= used;
    }
  }
  return filter;
}

// The arguments that all pieces of packing and unpacking share.
struct Planes {
  const float* input;
  uint32_t* words;
  float* output;
  int64_t channels, pixels, images;
};

void PackImage(void* context, int64_t image) {
  const Planes& p = *static_cast<const Planes*>(context);
  const int64_t words = WordsFor(p.channels);
  PackNchw(p.input + image * p.channels * p.pixels, 1, p.channels, p.pixels, p.words + image * p.pixels * words);
}

// Unpacks one column of words, that is 32 planes of one image, to +-1: the bit becomes the sign of 1.0.
void UnpackColumn(void* context, int64_t piece) {
  const Planes& p = *static_cast<const Planes*>(context);
  constexpr int64_t kBlock = 64;
  constexpr uint32_t kOne = 0x3f800000;
  const int64_t words = WordsFor(p.channels), image = piece / words, word = piece % words;
  const uint32_t* in = p.words + image * p.pixels * words + word;
  float* out = p.output + (image * p.channels + word * kWordBits) * p.pixels;
  const int64_t planes = std::min<int64_t>(kWordBits, p.channels - word * kWordBits);
  uint32_t column[kBlock];
  for (int64_t first = 0; first < p.pixels; first += kBlock) {
    const int64_t count = std::min(kBlock, p.pixels - first);
    for (int64_t i = 0; i < count; ++i) column[i] = in[(first + i) * words];
    for (int64_t plane = 0; plane < planes; ++plane) {
      float* to = out + plane * p.pixels + first;
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t value = (column[i] >> plane) << 31 | kOne;
        std::memcpy(to + i, &value, sizeof(value));
      }
    }
  }
}

// The parameters of `count` filters from `first` on; none if there are none for any filter.
template <class T>
std::vector<T> Part(const std::vector<T>& values, int64_t first, int64_t count) {
  if (values.empty()) return {};
  return std::vector<T>(values.begin() + first, values.begin() + first + count);
}

}  // namespace

std::string ConvAttributes::Check() const {
  std::string error = CheckRange("strides", strides, 2, 1, kMaxDimension);
  if (error.empty()) error = CheckRange("pads", pads, 4, 0, kMaxPad);
  if (error.empty()) error = CheckRange("dilations", dilations, 2, 1, kMaxDimension);
  if (error.empty()) error = CheckRange("group", &group, 1, 1, kMaxDimension);
  if (error.empty()) error = CheckRange("channels", &channels, 1, 1, kMaxDimension);
  return error;
}

int64_t ConvAttributes::OutSize(int axis, int64_t size, int64_t kernel) const {
  return OutputSize(size, kernel, strides[axis], dilations[axis], pads[axis] + pads[axis + 2]);
}

std::unique_ptr<Layer> Layer::Create(const ConvAttributes& attributes, const Weights& weights,
                                     OutputTransform transform, Images images, std::string* error) {
  *error = attributes.Check();
  if (error->empty()) *error = CheckWeights(attributes, weights);
  if (error->empty() && images == kPackedNhwc && attributes.group > 1 && attributes.channels % kWordBits != 0) {
    *error =
        "the channels of a group must fill whole words of packed signs, found " + std::to_string(attributes.channels);
  }
  if (!error->empty()) return nullptr;
  std::unique_ptr<Layer> layer(new Layer);
  layer->attributes_ = attributes;
  layer->images_ = images;
  layer->out_channels_ = weights.dimensions[0];
  layer->kernel_[0] = weights.dimensions[1];
  layer->kernel_[1] = weights.dimensions[2];
  layer->filter_ = FilterWords(weights, attributes.channels);
  layer->transform_ = std::move(transform);
  // The size of the input comes with the first run. Until then it is the smallest that the kernel fits into.
  int64_t shape[4] = {1, attributes.group * attributes.channels, 1, 1};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t extent = attributes.dilations[axis] * (layer->kernel_[axis] - 1) + 1;
    shape[2 + axis] = std::max<int64_t>(1, extent - attributes.pads[axis] - attributes.pads[axis + 2]);
  }
  *error = layer->AddSize(shape);
  if (!error->empty()) return nullptr;
  return layer;
}

std::string Layer::AddSize(const int64_t* shape) {
  const int64_t count = PerGroup() ? attributes_.group : 1;
  const int64_t filters = out_channels_ / count;
  BConv2dParams params{};
  params.batch = PerGroup() ? 1 : shape[0];
  params.in_height = shape[2];
  params.in_width = shape[3];
  params.channels = PerGroup() ? attributes_.channels : attributes_.group * attributes_.channels;
  params.out_channels = filters;
  params.kernel_height = kernel_[0];
  params.kernel_width = kernel_[1];
  params.stride_height = attributes_.strides[0];
  params.stride_width = attributes_.strides[1];
  params.dilation_height = attributes_.dilations[0];
  params.dilation_width = attributes_.dilations[1];
  params.pad_top = attributes_.pads[0];
  params.pad_left = attributes_.pads[1];
  params.pad_bottom = attributes_.pads[2];
  params.pad_right = attributes_.pads[3];
  params.groups = PerGroup() ? 1 : attributes_.group;
  auto sized = std::make_unique<SizedConvs>();
  for (int64_t i = 0; i < count; ++i) {
    OutputTransform part = transform_;
    part.multiplier = Part(transform_.multiplier, i * filters, filters);
    part.bias = Part(transform_.bias, i * filters, filters);
    part.threshold = Part(transform_.threshold, i * filters, filters);
    const uint32_t* filter = filter_.data() + i * static_cast<int64_t>(filter_.size()) / count;
    std::string error;
    sized->convs.push_back(Conv::Create(params, filter, part, nullptr, &error));
    if (sized->convs.back() == nullptr) return error;
  }
  std::string error = Resize(sized.get(), shape);
  if (error.empty()) sizes_.push_back(std::move(sized));
  return error;
}

std::string Layer::Resize(SizedConvs* sized, const int64_t* shape) const {
  std::fill(sized->shape, sized->shape + 4, 0);  // so that a failure leaves no size that another run could find
  for (const auto& conv : sized->convs) {
    std::string error = conv->Resize(PerGroup() ? 1 : shape[0], shape[2], shape[3]);
    if (!error.empty()) return error;
  }
  const BConv2dParams& p = sized->convs.front()->params();
  const int64_t out_pixels = p.batch * p.OutHeight() * p.OutWidth();
  int64_t bytes = 0;
  if (images_ == kFloatNchw) {
    bytes = Aligned(p.batch * p.in_height * p.in_width * p.InWords() * int64_t{sizeof(uint32_t)});
    if (transform_.kind == OutputKind::kBits) {
      bytes += Aligned(out_pixels * WordsFor(p.out_channels) * int64_t{sizeof(uint32_t)});
    }
  }
  int64_t workspace = 0;
  for (const auto& each : sized->convs) workspace = std::max(workspace, each->WorkspaceBytes());
  sized->scratch_bytes = bytes + Aligned(workspace);
  sized->value_bytes = Aligned(out_pixels * p.out_channels * int64_t{sizeof(float)});
  const int64_t in_values = p.batch * p.in_height * p.in_width * p.channels;
  const int64_t values = in_values + out_pixels * p.out_channels;
  if (sized->scratch_bytes > ProportionateBytes(int64_t{sizeof(float)} * values)) {
    return "the dilated filter reaches too far beyond an input of " + std::to_string(shape[2]) + " x " +
           std::to_string(shape[3]);
  }
  std::copy(shape, shape + 4, sized->shape);
  return {};
}

// Holds the convolutions for one size, and memory, for the time of one run.
class Layer::Lease {
 public:
  // `keeps_values`: the scratch has room for the float output.
  Lease(Layer* layer, const int64_t* shape, bool keeps_values)
      : layer_(layer), scratch_(&layer->workspaces_), error_(layer->Acquire(shape, keeps_values, &sized_, &scratch_)) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (sized_ != nullptr) layer_->Release(sized_);
  }
  const std::string& error() const { return error_; }
  const SizedConvs& sized() const { return *sized_; }
  uint8_t* scratch() const { return scratch_.get(); }

 private:
  Layer* layer_;
  SizedConvs* sized_ = nullptr;
  WorkspacePool::Lease scratch_;
  std::string error_;
};

std::string Layer::Acquire(const int64_t* shape, bool keeps_values, SizedConvs** sized, WorkspacePool::Lease* scratch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  SizedConvs* found = nullptr;
  for (const auto& each : sizes_) {
    if (std::equal(shape, shape + 4, each->shape)) found = each.get();
  }
  if (found == nullptr) {
    std::string error;
    for (const auto& each : sizes_) {
      if (each->users == 0) found = each.get();
    }
    if (found != nullptr) {
      error = Resize(found, shape);
    } else {
      error = AddSize(shape);
      if (error.empty()) found = sizes_.back().get();
    }
    if (!error.empty()) return error;
  }
  scratch->AtLeast(found->scratch_bytes + (keeps_values ? found->value_bytes : 0));
  ++found->users;
  *sized = found;
  return {};
}

void Layer::Release(SizedConvs* sized) {
  const std::lock_guard<std::mutex> lock(mutex_);
  --sized->users;
}

std::string Layer::OutputShape(const int64_t* input, int64_t* output) const {
  const int64_t channels = attributes_.group * attributes_.channels;
  if (input[1] != channels) {
    return "X must have " + std::to_string(channels) + " channels, found " + std::to_string(input[1]);
  }
  if (input[0] < 0 || input[0] > kMaxDimension) return "the batch must be in [0, 2^31 - 1]";
  output[0] = input[0];
  output[1] = out_channels_;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = input[2 + axis];
    if (size < 1 || size > kMaxDimension) return "X must have height and width in [1, 2^31 - 1]";
    output[2 + axis] = attributes_.OutSize(axis, size, kernel_[axis]);
    if (output[2 + axis] < 1) {
      return "the kernel of " + std::to_string(kernel_[0]) + " x " + std::to_string(kernel_[1]) +
             " does not fit into the padded input of " + std::to_string(input[2]) + " x " + std::to_string(input[3]);
    }
  }
  return {};
}

std::string Layer::Run(const float* input, const int64_t* shape, float* output, const Parallel& parallel) {
  if (shape[0] == 0) return {};
  const Lease lease(this, shape, false);
  if (!lease.error().empty()) return lease.error();
  const auto& convs = lease.sized().convs;
  if (!PerGroup()) {
    RunConv(*convs.front(), input, output, lease.scratch(), parallel);
    return {};
  }
  // In NCHW the planes of one group of one image are neighbours, before and after.
  const BConv2dParams& p = convs.front()->params();
  const int64_t in_step = p.channels * p.in_height * p.in_width;
  const int64_t out_step = p.out_channels * p.OutHeight() * p.OutWidth();
  for (int64_t image = 0; image < shape[0]; ++image) {
    for (const auto& conv : convs) {
      RunConv(*conv, input, output, lease.scratch(), parallel);
      input += in_step;
      output += out_step;
    }
  }
  return {};
}

std::string Layer::Run(ConvTensors tensors, const int64_t* shape, const Parallel& parallel) {
  if (shape[0] == 0) return {};
  const Lease lease(this, shape, tensors.output == nullptr);
  if (!lease.error().empty()) return lease.error();
  if (tensors.output == nullptr) tensors.output = lease.scratch() + lease.sized().scratch_bytes;
  lease.sized().convs.front()->Run(tensors, lease.scratch(), parallel);
  return {};
}

void Layer::RunConv(const Conv& conv, const float* input, float* output, uint8_t* scratch,
                    const Parallel& parallel) const {
  const BConv2dParams& p = conv.params();
  Planes in{input, reinterpret_cast<uint32_t*>(scratch), nullptr, p.channels, p.in_height * p.in_width, p.batch};
  scratch += Aligned(p.batch * in.pixels * p.InWords() * int64_t{sizeof(uint32_t)});
  parallel.run(parallel.host, p.batch, PackImage, &in);
  if (transform_.kind != OutputKind::kBits) {
    conv.Run({in.words, output}, scratch, parallel);
    return;
  }
  const int64_t words = WordsFor(p.out_channels);
  Planes out{nullptr,        reinterpret_cast<uint32_t*>(scratch), output,
             p.out_channels, p.OutHeight() * p.OutWidth(),         p.batch};
  scratch += Aligned(p.batch * out.pixels * words * int64_t{sizeof(uint32_t)});
  conv.Run({in.words, out.words}, scratch, parallel);
  parallel.run(parallel.host, p.batch * words, UnpackColumn, &out);
}

}  // namespace bnnedge
