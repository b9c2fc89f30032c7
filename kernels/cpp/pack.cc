// Packing by the kernels of the instruction set that SelectConvKernel gives without a name.
#include <algorithm>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/pack_kernel.h"

namespace bnnedge {
namespace {

// A wrong BNNEDGE_KERNEL is reported where a Conv is made; here it means the fastest.
const PackKernel& Kernel() {
  static const PackKernel& kernel = []() -> const PackKernel& {
    std::string error;
    const char* name = SelectConvKernel(nullptr, &error);
    return FindPackKernel(name == nullptr ? ConvKernelNames().front() : name);
  }();
  return kernel;
}

}  // namespace

void PackNhwc(const float* values, float limit, int64_t pixels, int64_t channels, uint32_t* words) {
  Kernel().pack_nhwc_float(values, limit, pixels, channels, words);
}

void PackNhwcByChannel(const float* values, const float* limits, int64_t pixels, int64_t channels, uint32_t* words) {
  Kernel().pack_nhwc_float_by_channel(values, limits, pixels, channels, words);
}

void PackNhwc(const int8_t* values, int32_t zero_point, int64_t pixels, int64_t channels, uint32_t* words) {
  if (zero_point > INT8_MAX) {  // every value is below it
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t c = 0; c < channels; c += kWordBits) {
        const int64_t bits = std::min<int64_t>(kWordBits, channels - c);
        *words++ = bits == kWordBits ? ~0u : (1u << bits) - 1u;
      }
    }
    return;
  }
  Kernel().pack_nhwc_int8(values, std::max<int32_t>(zero_point, INT8_MIN), pixels, channels, words);
}

void PackNchw(const float* values, int64_t batch, int64_t channels, int64_t pixels, uint32_t* words) {
  for (int64_t n = 0; n < batch; ++n) {
    Kernel().pack_nchw_float(values + n * channels * pixels, channels, pixels, words + n * pixels * WordsFor(channels));
  }
}

void UnpackNhwc(const uint32_t* words, int64_t pixels, int64_t channels, float* values) {
  Kernel().unpack_nhwc(words, pixels, channels, values);
}

}  // namespace bnnedge
