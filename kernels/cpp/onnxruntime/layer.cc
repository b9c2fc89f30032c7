#include "layer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace bnnedge {
namespace {

constexpr int64_t kMaxDimension = (int64_t{1} << 31) - 1;
// More makes no sense, and the size of the output must not come from the file alone.
constexpr int64_t kMaxPad = int64_t{1} << 20;
// A filter dilated far beyond its map needs a padded copy of the map out of all proportion to its input and output.
constexpr int64_t kFreeScratchBytes = int64_t{256} << 20;
constexpr int64_t kScratchPerByte = 16;

std::string CheckRange(const char* name, const int64_t* values, int count, int64_t least, int64_t most) {
  for (int i = 0; i < count; ++i) {
    if (values[i] < least || values[i] > most) {
      return std::string(name) + " must be in [" + std::to_string(least) + ", " + std::to_string(most) + "], found " +
             std::to_string(values[i]);
    }
  }
  return {};
}

std::string CheckWeights(const Window& window, const Weights& weights) {
  const int64_t* d = weights.dimensions;
  std::string error = CheckRange("the dimensions of W", d, 4, 1, kMaxDimension);
  if (!error.empty()) return error;
  const int64_t bytes = WordsFor(window.channels) * int64_t{sizeof(uint32_t)};
  if (d[3] != bytes) {
    return "W must hold " + std::to_string(bytes) + " bytes a tap for " + std::to_string(window.channels) +
           " channels, found " + std::to_string(d[3]);
  }
  if (d[0] % window.group != 0) {
    return "the " + std::to_string(d[0]) + " filters of W do not divide into " + std::to_string(window.group) +
           " groups";
  }
  return {};
}

// Little-endian bytes to words. Bits beyond the last channel have no meaning in the file and must be 0 in a filter.
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

// What the pieces of packing and unpacking share.
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

// One column of words, that is 32 planes of one image, to +-1: the bit becomes the sign of 1.0.
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

// `count` filters from `first`, or all values if there are none to cut.
template <class T>
std::vector<T> Part(const std::vector<T>& values, int64_t first, int64_t count) {
  if (values.empty()) return {};
  return std::vector<T>(values.begin() + first, values.begin() + first + count);
}

}  // namespace

std::string Window::Check() const {
  std::string error = CheckRange("strides", strides, 2, 1, kMaxDimension);
  if (error.empty()) error = CheckRange("pads", pads, 4, 0, kMaxPad);
  if (error.empty()) error = CheckRange("dilations", dilations, 2, 1, kMaxDimension);
  if (error.empty()) error = CheckRange("group", &group, 1, 1, kMaxDimension);
  if (error.empty()) error = CheckRange("channels", &channels, 1, 1, kMaxDimension);
  return error;
}

int64_t Window::OutSize(int axis, int64_t size, int64_t kernel) const {
  const int64_t room = size + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel - 1) - 1;
  return room < 0 ? 0 : room / strides[axis] + 1;
}

std::unique_ptr<Layer> Layer::Create(const Window& window, const Weights& weights, Transform transform,
                                     Images images, std::string* error) {
  *error = window.Check();
  if (error->empty()) *error = CheckWeights(window, weights);
  if (error->empty() && images == kPackedNhwc && window.group > 1 && window.channels % kWordBits != 0) {
    *error = "the channels of a group must fill whole words of packed signs, found " + std::to_string(window.channels);
  }
  if (!error->empty()) return nullptr;
  std::unique_ptr<Layer> layer(new Layer);
  layer->window_ = window;
  layer->images_ = images;
  layer->out_channels_ = weights.dimensions[0];
  layer->kernel_[0] = weights.dimensions[1];
  layer->kernel_[1] = weights.dimensions[2];
  layer->filter_ = FilterWords(weights, window.channels);
  layer->transform_ = std::move(transform);
  // The input's size comes with the first run; until then the smallest that the kernel fits into.
  int64_t shape[4] = {1, window.group * window.channels, 1, 1};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t extent = window.dilations[axis] * (layer->kernel_[axis] - 1) + 1;
    shape[2 + axis] = std::max<int64_t>(1, extent - window.pads[axis] - window.pads[axis + 2]);
  }
  *error = layer->AddPlan(shape);
  if (!error->empty()) return nullptr;
  return layer;
}

std::string Layer::AddPlan(const int64_t* shape) {
  const int64_t count = PerGroup() ? window_.group : 1;
  const int64_t filters = out_channels_ / count;
  BConv2dParams params{};
  params.batch = PerGroup() ? 1 : shape[0];
  params.in_height = shape[2];
  params.in_width = shape[3];
  params.channels = PerGroup() ? window_.channels : window_.group * window_.channels;
  params.out_channels = filters;
  params.kernel_height = kernel_[0];
  params.kernel_width = kernel_[1];
  params.stride_height = window_.strides[0];
  params.stride_width = window_.strides[1];
  params.dilation_height = window_.dilations[0];
  params.dilation_width = window_.dilations[1];
  params.pad_top = window_.pads[0];
  params.pad_left = window_.pads[1];
  params.pad_bottom = window_.pads[2];
  params.pad_right = window_.pads[3];
  params.groups = PerGroup() ? 1 : window_.group;
  auto plan = std::make_unique<Plan>();
  for (int64_t i = 0; i < count; ++i) {
    Transform part = transform_;
    part.multiplier = Part(transform_.multiplier, i * filters, filters);
    part.bias = Part(transform_.bias, i * filters, filters);
    part.threshold = Part(transform_.threshold, i * filters, filters);
    const uint32_t* filter = filter_.data() + i * static_cast<int64_t>(filter_.size()) / count;
    std::string error;
    plan->convs.push_back(Conv::Create(params, filter, part, nullptr, &error));
    if (plan->convs.back() == nullptr) return error;
  }
  std::string error = Resize(plan.get(), shape);
  if (error.empty()) plans_.push_back(std::move(plan));
  return error;
}

std::string Layer::Resize(Plan* plan, const int64_t* shape) const {
  std::fill(plan->shape, plan->shape + 4, 0);  // so that a failure leaves no size that could be met again
  for (const auto& conv : plan->convs) {
    std::string error = conv->Resize(PerGroup() ? 1 : shape[0], shape[2], shape[3]);
    if (!error.empty()) return error;
  }
  const BConv2dParams& p = plan->convs.front()->params();
  const int64_t out_pixels = p.batch * p.OutHeight() * p.OutWidth();
  int64_t bytes = 0;
  if (images_ == kFloatNchw) {
    bytes = Aligned(p.batch * p.in_height * p.in_width * p.InWords() * int64_t{sizeof(uint32_t)});
    if (transform_.kind == OutputKind::kBits) {
      bytes += Aligned(out_pixels * WordsFor(p.out_channels) * int64_t{sizeof(uint32_t)});
    }
  }
  int64_t workspace = 0;
  for (const auto& each : plan->convs) workspace = std::max(workspace, each->WorkspaceBytes());
  plan->scratch_bytes = bytes + Aligned(workspace);
  plan->value_bytes = Aligned(out_pixels * p.out_channels * int64_t{sizeof(float)});
  const int64_t in_values = p.batch * p.in_height * p.in_width * p.channels;
  const int64_t values = in_values + out_pixels * p.out_channels;
  if (plan->scratch_bytes > kFreeScratchBytes + kScratchPerByte * int64_t{sizeof(float)} * values) {
    return "the dilated filter reaches too far beyond an input of " + std::to_string(shape[2]) + " x " +
           std::to_string(shape[3]);
  }
  std::copy(shape, shape + 4, plan->shape);
  return {};
}

// Holds a plan and memory for the time of one run.
class Layer::Lease {
 public:
  // `keeps_values`: with room for the float output in scratch.
  Lease(Layer* layer, const int64_t* shape, bool keeps_values)
      : layer_(layer), error_(layer->Acquire(shape, keeps_values, &plan_, &scratch_)) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (plan_ != nullptr) layer_->Release(plan_, std::move(scratch_));
  }
  const std::string& error() const { return error_; }
  const Plan& plan() const { return *plan_; }
  uint8_t* scratch() const { return scratch_.get(); }

 private:
  Layer* layer_;
  Plan* plan_ = nullptr;
  AlignedBuffer scratch_;
  std::string error_;
};

std::string Layer::Acquire(const int64_t* shape, bool keeps_values, Plan** plan, AlignedBuffer* scratch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Plan* found = nullptr;
  for (const auto& each : plans_) {
    if (std::equal(shape, shape + 4, each->shape)) found = each.get();
  }
  if (found == nullptr) {
    std::string error;
    for (const auto& each : plans_) {
      if (each->users == 0) found = each.get();
    }
    if (found != nullptr) {
      error = Resize(found, shape);
    } else {
      error = AddPlan(shape);
      if (error.empty()) found = plans_.back().get();
    }
    if (!error.empty()) return error;
  }
  if (!scratches_.empty()) {
    *scratch = std::move(scratches_.back());
    scratches_.pop_back();
  }
  scratch->AtLeast(found->scratch_bytes + (keeps_values ? found->value_bytes : 0));
  // Room for every buffer that is out, this one included, so that Release needs no memory.
  int64_t runs = 1;
  for (const auto& each : plans_) runs += each->users;
  scratches_.reserve(scratches_.size() + static_cast<size_t>(runs));
  ++found->users;
  *plan = found;
  return {};
}

void Layer::Release(Plan* plan, AlignedBuffer scratch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  --plan->users;
  scratches_.push_back(std::move(scratch));
}

std::string Layer::OutputShape(const int64_t* input, int64_t* output) const {
  const int64_t channels = window_.group * window_.channels;
  if (input[1] != channels) {
    return "X must have " + std::to_string(channels) + " channels, found " + std::to_string(input[1]);
  }
  if (input[0] < 0 || input[0] > kMaxDimension) return "the batch must be in [0, 2^31 - 1]";
  output[0] = input[0];
  output[1] = out_channels_;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = input[2 + axis];
    if (size < 1 || size > kMaxDimension) return "X must have height and width in [1, 2^31 - 1]";
    output[2 + axis] = window_.OutSize(axis, size, kernel_[axis]);
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
  const auto& convs = lease.plan().convs;
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
  if (tensors.output == nullptr) tensors.output = lease.scratch() + lease.plan().scratch_bytes;
  lease.plan().convs.front()->Run(tensors, lease.scratch(), parallel);
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
  Planes out{nullptr, reinterpret_cast<uint32_t*>(scratch), output, p.out_channels, p.OutHeight() * p.OutWidth(),
             p.batch};
  scratch += Aligned(p.batch * out.pixels * words * int64_t{sizeof(uint32_t)});
  conv.Run({in.words, out.words}, scratch, parallel);
  parallel.run(parallel.host, p.batch * words, UnpackColumn, &out);
}

}  // namespace bnnedge
