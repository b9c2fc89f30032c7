#include "stem_chain.h"

#include <cmath>
#include <string>
#include <unordered_map>

#include "op.h"

namespace bnnedge::tflite {
namespace {

constexpr int kRank = 4;

int32_t Count(const IntArray* array) { return array == nullptr ? 0 : array->size; }

// Finds stems operator by operator.
class StemFinder {
 public:
  StemFinder(Context* context, const std::vector<int32_t>& nodes) : context_(context) {
    for (const int32_t index : nodes) {
      Node* node = nullptr;
      Registration* registration = nullptr;
      if (context->get_node_and_registration(context, index, &node, &registration) != kOk) {
        throw ModelError("node " + std::to_string(index) + " cannot be read");
      }
      for (int32_t i = 0; i < Count(node->inputs); ++i) readers_[node->inputs->data[i]].push_back(index);
      for (int32_t i = 0; i < Count(node->outputs); ++i) writers_[node->outputs->data[i]] = index;
      steps_[index] = {index, node, registration->custom_name == nullptr ? registration->builtin_code : -1};
    }
  }

  // Reads the chain that begins with this QUANTIZE. Returns false if there is none.
  bool Find(int32_t index, StemChain* chain) const {
    const Step* const quantize = At(index);
    return TakeQuantize(quantize, chain) && TakeConv(chain) && TakePool(chain) && TakeDequantize(chain);
  }

 private:
  struct Step {
    int32_t index;
    const Node* node;
    int code;
  };

  const Step* At(int32_t index) const {
    const auto found = steps_.find(index);
    return found == steps_.end() ? nullptr : &found->second;
  }

  const Tensor* TensorAt(int32_t index) const {
    return index >= 0 && static_cast<size_t>(index) < context_->tensors_size ? &context_->tensors[index] : nullptr;
  }

  static int32_t Input(const Step& step, int32_t position) {
    return position < Count(step.node->inputs) ? step.node->inputs->data[position] : kOptionalTensor;
  }
  static int32_t Output(const Step& step) { return step.node->outputs->data[0]; }

  bool Is(const Step* step, int code, int32_t least_inputs, int32_t most_inputs) const {
    return step != nullptr && step->code == code && Count(step->node->outputs) == 1 &&
           Count(step->node->inputs) >= least_inputs && Count(step->node->inputs) <= most_inputs;
  }

  const Step* OnlyReader(int32_t tensor) const {
    const auto found = readers_.find(tensor);
    return found == readers_.end() || found->second.size() != 1 ? nullptr : At(found->second[0]);
  }

  bool IsUnread(int32_t tensor) const { return readers_.count(tensor) == 0; }

  bool IsMap(int32_t tensor, Type type) const {
    const Tensor* const map = TensorAt(tensor);
    return map != nullptr && map->type == static_cast<int>(type) && Count(map->dims) == kRank && !IsConstant(*map);
  }

  static bool IsConstant(const Tensor& tensor) {
    return (tensor.allocation_type == kMmapRo || tensor.allocation_type == kPersistentRo) && tensor.data != nullptr;
  }

  bool ReadCodes(int32_t tensor, Quantization* codes) const {
    if (!IsMap(tensor, Type::kInt8) || TensorAt(tensor)->quantization_type != kAffineQuantization) return false;
    *codes = {TensorAt(tensor)->scale, TensorAt(tensor)->zero_point};
    return codes->scale > 0.0f && std::isfinite(codes->scale) && codes->zero_point >= INT8_MIN &&
           codes->zero_point <= INT8_MAX;
  }

  bool HasCodes(int32_t tensor, const Quantization& wanted) const {
    Quantization codes{};
    return ReadCodes(tensor, &codes) && codes.scale == wanted.scale && codes.zero_point == wanted.zero_point;
  }

  bool TakeQuantize(const Step* quantize, StemChain* chain) const {
    if (!Is(quantize, kQuantize, 1, 1) || !IsMap(Input(*quantize, 0), Type::kFloat32)) return false;
    chain->image = Input(*quantize, 0);
    chain->quantized = Output(*quantize);
    chain->params.fold = 1;
    chain->params.layout = Layout::kNhwc;
    chain->params.arithmetic = Arithmetic::kFixedPoint;
    const auto writer = writers_.find(chain->image);
    const Step* const fold = writer == writers_.end() ? nullptr : At(writer->second);
    if (Is(fold, kSpaceToDepth, 1, 1) && fold->node->builtin_data != nullptr && OnlyReader(chain->image) == quantize &&
        static_cast<const SpaceToDepthParams*>(fold->node->builtin_data)->block_size == 2 &&
        IsMap(Input(*fold, 0), Type::kFloat32)) {
      chain->inner.push_back(chain->image);
      chain->image = Input(*fold, 0);
      chain->params.fold = 2;
      chain->nodes.push_back(fold->index);
    }
    chain->nodes.push_back(quantize->index);
    chain->params.channels = TensorAt(chain->image)->dims->data[kRank - 1];
    return ReadCodes(chain->quantized, &chain->params.source);
  }

  // The only reader of *tensor. If that is a PAD, *tensor becomes its output, and the reader of that is returned. Pads
  // are top, left, bottom, right.
  const Step* BehindPad(int32_t* tensor, const Quantization& codes, int64_t* pads, StemChain* chain) const {
    const Step* const pad = OnlyReader(*tensor);
    if (!Is(pad, static_cast<int>(Builtin::kPad), 2, 2)) return pad;
    const Tensor* const edges = TensorAt(Input(*pad, 1));
    if (Input(*pad, 0) != *tensor || edges == nullptr || edges->type != static_cast<int>(Type::kInt32) ||
        !IsConstant(*edges) || edges->bytes != 2 * kRank * sizeof(int32_t) || !HasCodes(Output(*pad), codes)) {
      return nullptr;
    }
    const int32_t* const edge = static_cast<const int32_t*>(edges->data);
    for (int axis = 0; axis < kRank; ++axis) {
      const bool is_padded = axis == 1 || axis == 2;
      for (int end = 0; end < 2; ++end) {
        const int32_t pixels = edge[2 * axis + end];
        if (pixels < 0 || (pixels > 0 && !is_padded)) return nullptr;
        if (is_padded) pads[2 * end + axis - 1] = pixels;
      }
    }
    chain->nodes.push_back(pad->index);
    chain->inner.push_back(Output(*pad));
    *tensor = Output(*pad);
    return OnlyReader(*tensor);
  }

  static bool ReadWindow(int padding, int height, int width, int stride_height, int stride_width, bool* is_same,
                         KernelWindow* window) {
    *is_same = padding == kPaddingSame;
    const int64_t* const pads = window->pads;
    if (padding != kPaddingSame && padding != kPaddingValid) return false;
    if (*is_same && (pads[0] | pads[1] | pads[2] | pads[3]) != 0) return false;
    if (height < 1 || width < 1 || stride_height < 1 || stride_width < 1) return false;
    *window = {{height, width}, {stride_height, stride_width}, {pads[0], pads[1], pads[2], pads[3]}};
    return pads[0] < height && pads[2] < height && pads[1] < width && pads[3] < width;
  }

  bool TakeConv(StemChain* chain) const {
    StemParams& p = chain->params;
    int32_t source = chain->quantized;
    const Step* const conv = BehindPad(&source, p.source, p.conv.pads, chain);
    if (!Is(conv, static_cast<int>(Builtin::kConv2d), 3, 3) || Input(*conv, 0) != source ||
        conv->node->builtin_data == nullptr)
      return false;
    chain->filter = Input(*conv, 1);
    chain->bias = Input(*conv, 2);
    chain->convolved = Output(*conv);
    chain->nodes.push_back(conv->index);
    if (!ReadFilter(chain) || !ReadCodes(chain->convolved, &p.target)) return false;
    p.low_code = INT8_MIN;
    p.high_code = INT8_MAX;
    const auto& options = *static_cast<const ConvParams*>(conv->node->builtin_data);
    const IntArray& shape = *TensorAt(chain->filter)->dims;
    return options.activation == kActivationNone && options.dilation_width == 1 && options.dilation_height == 1 &&
           ReadWindow(options.padding, shape.data[1], shape.data[2], options.stride_height, options.stride_width,
                      &chain->conv_is_same, &p.conv);
  }

  bool ReadFilter(StemChain* chain) const {
    StemParams& p = chain->params;
    const Tensor* const filter = TensorAt(chain->filter);
    if (filter == nullptr || filter->type != static_cast<int>(Type::kInt8) || !IsConstant(*filter) ||
        Count(filter->dims) != kRank || filter->quantization_type != kAffineQuantization ||
        filter->quantization == nullptr) {
      return false;
    }
    p.out_channels = filter->dims->data[0];
    if (p.channels < 1 || p.out_channels < 1 || filter->dims->data[kRank - 1] != p.FilterChannels()) return false;
    const Tensor* const bias = TensorAt(chain->bias);
    if (bias == nullptr || bias->type != static_cast<int>(Type::kInt32) || !IsConstant(*bias) ||
        bias->bytes != static_cast<size_t>(p.out_channels) * sizeof(int32_t)) {
      return false;
    }
    const auto& quantization = *static_cast<const AffineQuantization*>(filter->quantization);
    const int32_t scales = quantization.scale == nullptr ? 0 : quantization.scale->size;
    if (scales != 1 && (scales != p.out_channels || quantization.quantized_dimension != 0)) return false;
    for (int32_t i = 0; i < Count(quantization.zero_point); ++i) {
      if (quantization.zero_point->data[i] != 0) return false;
    }
    for (int64_t o = 0; o < p.out_channels; ++o) {
      const float scale = quantization.scale->data[scales == 1 ? 0 : o];
      if (!(scale >= 0.0f) || !std::isfinite(scale)) return false;
      chain->filter_scale.push_back(scale);
    }
    return true;
  }

  bool TakePool(StemChain* chain) const {
    StemParams& p = chain->params;
    StemChain with_pool = *chain;
    int32_t source = chain->convolved;
    const Step* const pool = BehindPad(&source, p.target, with_pool.params.pool.pads, &with_pool);
    if (!Is(pool, kMaxPool2d, 1, 1) || pool->node->builtin_data == nullptr) return true;
    // Pixels that PAD adds must not be the maximum.
    const auto& options = *static_cast<const PoolParams*>(pool->node->builtin_data);
    if ((source != chain->convolved && p.target.zero_point != INT8_MIN) || options.activation != kActivationNone ||
        !HasCodes(Output(*pool), p.target) ||
        !ReadWindow(options.padding, options.filter_height, options.filter_width, options.stride_height,
                    options.stride_width, &with_pool.pool_is_same, &with_pool.params.pool)) {
      return true;
    }
    with_pool.params.pools = true;
    with_pool.pooled = Output(*pool);
    with_pool.nodes.push_back(pool->index);
    *chain = with_pool;
    return true;
  }

  bool TakeDequantize(StemChain* chain) const {
    const int32_t codes = chain->Output();
    if (IsUnread(codes)) return true;
    const Step* const dequantize = OnlyReader(codes);
    if (!Is(dequantize, kDequantize, 1, 1) || !IsMap(Output(*dequantize), Type::kFloat32)) return false;
    chain->floats = Output(*dequantize);
    chain->nodes.push_back(dequantize->index);
    return true;
  }

  Context* context_;
  std::unordered_map<int32_t, Step> steps_;
  std::unordered_map<int32_t, std::vector<int32_t>> readers_;
  std::unordered_map<int32_t, int32_t> writers_;
};

}  // namespace

std::vector<StemChain> FindStems(Context* context, const std::vector<int32_t>& nodes) {
  const StemFinder finder(context, nodes);
  std::vector<StemChain> chains;
  for (const int32_t index : nodes) {
    StemChain chain;
    if (finder.Find(index, &chain)) chains.push_back(std::move(chain));
  }
  return chains;
}

}  // namespace bnnedge::tflite
