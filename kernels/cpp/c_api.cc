#include "bnnedge/c_api.h"

#include <cstring>
#include <exception>
#include <string>

#include "bnnedge/bconv2d.h"

namespace {

int32_t Fail(bnnedge_status status, const char* message, char* error, size_t error_size) {
  if (error != nullptr && error_size > 0) {
    std::strncpy(error, message, error_size - 1);
    error[error_size - 1] = '\0';
  }
  return status;
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

}  // namespace

int32_t bnnedge_abi_version(void) { return BNNEDGE_ABI_VERSION; }

int32_t bnnedge_bit_layout_version(void) { return bnnedge::kBitLayoutVersion; }

const char* bnnedge_bconv2d_kernel_name(int32_t index) {
  const auto& kernels = bnnedge::BConv2dKernels();
  if (index < 0 || static_cast<size_t>(index) >= kernels.size()) return nullptr;
  return kernels[static_cast<size_t>(index)].name;
}

int32_t bnnedge_bconv2d(const bnnedge_bconv2d_params* params, const char* kernel, const uint32_t* input,
                        int64_t input_words, const uint32_t* filter, int64_t filter_words, int32_t* sums,
                        int64_t sum_count, char* error, size_t error_size) {
  if (params == nullptr || input == nullptr || filter == nullptr || sums == nullptr) {
    return Fail(BNNEDGE_INVALID_ARGUMENT, "params, input, filter and sums must not be NULL", error, error_size);
  }
  // No exception may cross the C boundary; std::bad_alloc is the one that can be met.
  try {
    const bnnedge::BConv2dParams p = FromC(*params);
    bnnedge::BConv2dSizes sizes{};
    std::string message = bnnedge::CheckBConv2d(p, &sizes);
    if (message.empty()) message = CheckCount("input", sizes.input_words, input_words);
    if (message.empty()) message = CheckCount("filter", sizes.filter_words, filter_words);
    if (message.empty()) message = CheckCount("sums", sizes.outputs, sum_count);
    if (!message.empty()) return Fail(BNNEDGE_INVALID_ARGUMENT, message.c_str(), error, error_size);
    const bnnedge::BConv2dKernel* chosen = bnnedge::SelectBConv2d(kernel, &message);
    if (chosen == nullptr) return Fail(BNNEDGE_UNKNOWN_KERNEL, message.c_str(), error, error_size);
    chosen->run(p, input, filter, sums);
    return BNNEDGE_OK;
  } catch (const std::exception& exception) {
    return Fail(BNNEDGE_INTERNAL, exception.what(), error, error_size);
  }
}
