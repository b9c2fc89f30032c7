// Reads integers out of a FlexBuffers map, the form in which LCE stores an operator's options.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnnedge::tflite {

// A map that checks every offset, width and count against the blob before it follows them.
class FlexMap {
 public:
  FlexMap(const void* data, int64_t size);

  // Whether the blob is a map at all. If it is not, `Find` finds nothing.
  bool valid() const { return count_ >= 0; }

  enum class Found { kMissing, kNotAnInteger, kInteger };
  Found Find(const char* key, int64_t* value) const;

 private:
  bool ReadUint(int64_t at, int64_t width, uint64_t* value) const;
  bool ReadInt(int64_t at, int64_t width, int64_t* value) const;
  bool KeyIs(int64_t index, const char* key) const;
  bool Open();

  const uint8_t* data_;
  int64_t size_;
  int64_t values_ = 0, value_width_ = 0;
  int64_t keys_ = 0, key_width_ = 0;
  int64_t count_ = -1;
};

}  // namespace bnnedge::tflite
