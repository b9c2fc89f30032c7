// Memory for the time of one run.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "bnnedge/aligned.h"

namespace bnnedge {

// The most memory that may be taken for tensors of `tensor_bytes`. A few bytes of a file can ask for any amount, for
// example by a filter that is dilated far beyond its input; such a file is refused.
constexpr int64_t ProportionateBytes(int64_t tensor_bytes) {
  constexpr int64_t kFreeBytes = int64_t{256} << 20;
  constexpr int64_t kBytesPerTensorByte = 16;
  return kFreeBytes + kBytesPerTensorByte * tensor_bytes;
}

// Buffers that are kept from run to run: as many as there are runs at once.
class WorkspacePool {
 public:
  // Holds a buffer for the time of one run.
  class Lease {
   public:
    explicit Lease(WorkspacePool* pool) : pool_(pool), buffer_(pool->Take()) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { pool_->Return(std::move(buffer_)); }

    // Grows the buffer if needed, which loses its contents. Throws std::bad_alloc.
    unsigned char* AtLeast(int64_t bytes) { return buffer_.AtLeast(bytes); }
    unsigned char* get() const { return buffer_.get(); }

   private:
    WorkspacePool* pool_;
    AlignedBuffer buffer_;
  };

 private:
  AlignedBuffer Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    AlignedBuffer buffer;
    if (!idle_.empty()) {
      buffer = std::move(idle_.back());
      idle_.pop_back();
    }
    idle_.reserve(idle_.size() + static_cast<size_t>(leases_ + 1));  // so that Return needs no memory
    ++leases_;
    return buffer;
  }

  void Return(AlignedBuffer buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --leases_;
    idle_.push_back(std::move(buffer));
  }

  std::mutex mutex_;
  int64_t leases_ = 0;
  std::vector<AlignedBuffer> idle_;
};

}  // namespace bnnedge
