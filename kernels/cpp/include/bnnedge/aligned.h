// Memory that is aligned to 64 bytes, the size of a cache line and of the widest vector.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "bnnedge/rounding.h"

namespace bnnedge {

constexpr int64_t kAlignment = 64;

constexpr int64_t Aligned(int64_t bytes) { return RoundUp(bytes, kAlignment); }

struct AlignedFree {
  void operator()(void* bytes) const { ::operator delete(bytes, std::align_val_t{kAlignment}); }
};
using AlignedBytes = std::unique_ptr<unsigned char, AlignedFree>;

// The memory is not initialised. Throws std::bad_alloc.
inline AlignedBytes AllocateAligned(int64_t bytes) {
  void* const memory = ::operator new(static_cast<size_t>(bytes), std::align_val_t{kAlignment});
  return AlignedBytes(static_cast<unsigned char*>(memory));
}

// A buffer that grows when it must and loses its contents then.
class AlignedBuffer {
 public:
  unsigned char* AtLeast(int64_t bytes) {
    if (bytes_ == nullptr || size_ < bytes) {
      size_ = 0;
      bytes_.reset();  // first, so that both are never there at once
      bytes_ = AllocateAligned(bytes);
      size_ = bytes;
    }
    return bytes_.get();
  }
  unsigned char* get() const { return bytes_.get(); }

 private:
  AlignedBytes bytes_;
  int64_t size_ = 0;
};

}  // namespace bnnedge
