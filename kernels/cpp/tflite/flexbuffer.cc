// The format from the end of the blob backwards is: the width of the root; its type (type << 2 | log2 of the width of
// its elements); its value, which for a map is an offset back to the map's values. In front of the values lie an offset
// back to the keys, the width of the keys, and the number of values. One type byte for each value lies behind them. A
// key is an offset back to a NUL-terminated string.
#include "flexbuffer.h"

#include <cstring>

namespace bnnedge::tflite {
namespace {

enum FlexType : int { kInt = 1, kUint = 2, kIndirectInt = 6, kIndirectUint = 7, kMap = 9, kBool = 26 };

bool IsWidth(int64_t width) { return width == 1 || width == 2 || width == 4 || width == 8; }

}  // namespace

FlexMap::FlexMap(const void* data, int64_t size) : data_(static_cast<const uint8_t*>(data)), size_(size) {
  if (data_ == nullptr || !Open()) count_ = -1;
}

bool FlexMap::ReadUint(int64_t at, int64_t width, uint64_t* value) const {
  if (!IsWidth(width) || at < 0 || at > size_ - width) return false;
  *value = 0;
  for (int64_t i = 0; i < width; ++i) *value |= static_cast<uint64_t>(data_[at + i]) << (8 * i);
  return true;
}

bool FlexMap::ReadInt(int64_t at, int64_t width, int64_t* value) const {
  uint64_t bits = 0;
  if (!ReadUint(at, width, &bits)) return false;
  const int unused = static_cast<int>(64 - 8 * width);
  *value = static_cast<int64_t>(bits << unused) >> unused;
  return true;
}

bool FlexMap::Open() {
  if (size_ < 3) return false;
  const int64_t root_width = data_[size_ - 1];
  const int root_type = data_[size_ - 2];
  if (root_type >> 2 != kMap) return false;
  const int64_t root = size_ - 2 - root_width;
  uint64_t offset = 0, count = 0, key_count = 0, key_width = 0;
  if (!ReadUint(root, root_width, &offset) || offset > static_cast<uint64_t>(root)) return false;
  values_ = root - static_cast<int64_t>(offset);
  value_width_ = int64_t{1} << (root_type & 3);
  const int64_t prefix = values_ - 3 * value_width_;
  if (!ReadUint(prefix, value_width_, &offset) || !ReadUint(prefix + value_width_, value_width_, &key_width) ||
      !ReadUint(prefix + 2 * value_width_, value_width_, &count)) {
    return false;
  }
  if (offset > static_cast<uint64_t>(prefix) || key_width > 8 || !IsWidth(static_cast<int64_t>(key_width)))
    return false;
  keys_ = prefix - static_cast<int64_t>(offset);
  key_width_ = static_cast<int64_t>(key_width);
  // The count is bounded before it is multiplied: each value takes its width and a type byte.
  if (count > static_cast<uint64_t>(size_ - values_) / static_cast<uint64_t>(value_width_ + 1)) return false;
  if (!ReadUint(keys_ - key_width_, key_width_, &key_count) || key_count != count) return false;
  count_ = static_cast<int64_t>(count);
  return true;
}

bool FlexMap::KeyIs(int64_t index, const char* key) const {
  const int64_t at = keys_ + index * key_width_;
  uint64_t offset = 0;
  if (!ReadUint(at, key_width_, &offset) || offset > static_cast<uint64_t>(at)) return false;
  const int64_t start = at - static_cast<int64_t>(offset);
  const int64_t length = static_cast<int64_t>(std::strlen(key)) + 1;
  return length <= size_ - start && std::memcmp(data_ + start, key, static_cast<size_t>(length)) == 0;
}

FlexMap::Found FlexMap::Find(const char* key, int64_t* value) const {
  for (int64_t i = 0; i < count_; ++i) {
    if (!KeyIs(i, key)) continue;
    int64_t at = values_ + i * value_width_;
    int64_t width = value_width_;
    const int packed = data_[values_ + count_ * value_width_ + i];
    int type = packed >> 2;
    if (type == kIndirectInt || type == kIndirectUint) {
      uint64_t offset = 0;
      if (!ReadUint(at, width, &offset) || offset > static_cast<uint64_t>(at)) return Found::kNotAnInteger;
      at -= static_cast<int64_t>(offset);
      width = int64_t{1} << (packed & 3);
      type = type == kIndirectInt ? kInt : kUint;
    }
    if (type == kInt) return ReadInt(at, width, value) ? Found::kInteger : Found::kNotAnInteger;
    uint64_t bits = 0;
    if ((type != kUint && type != kBool) || !ReadUint(at, width, &bits) || bits > INT64_MAX)
      return Found::kNotAnInteger;
    *value = static_cast<int64_t>(bits);
    return Found::kInteger;
  }
  return Found::kMissing;
}

}  // namespace bnnedge::tflite
