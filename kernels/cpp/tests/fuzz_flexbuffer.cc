// Fuzz target: the reader of an operator's options on bytes of any kind. It must stay inside them.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "../tflite/flexbuffer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The bytes are copied to a block of exactly their size.
  const std::unique_ptr<uint8_t[]> blob(new uint8_t[size]);
  if (size > 0) std::memcpy(blob.get(), data, size);
  const bnnedge::tflite::FlexMap options(blob.get(), static_cast<int64_t>(size));
  for (const char* key : {"channels_in", "fused_activation_function", "padding", "stride_width", ""}) {
    int64_t value = 0;
    const auto found = options.Find(key, &value);
    if (!options.valid() && found != bnnedge::tflite::FlexMap::Found::kMissing) std::abort();
  }
  return 0;
}
