// The parts that the kernels' test programs share: random numbers, counted failures, and memory that ends at an
// unreadable page.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace bnnedge::test {

inline int64_t cases = 0, failures = 0;

// Prints the first failures and counts all.
inline void Fail(const std::string& what) {
  if (++failures <= 20) std::fprintf(stderr, "FAIL %s\n", what.c_str());
}

// The same numbers in every run.
inline uint32_t Random() {
  static uint64_t state = 0x9e3779b97f4a7c15u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<uint32_t>(state >> 32);
}

constexpr unsigned char kPoison = 0xa5;

// `bytes` of poison. The first byte is aligned to `alignment`, and the last is as close to an unreadable page as that
// allows.
class Guarded {
 public:
  explicit Guarded(size_t bytes, size_t alignment = 4) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + alignment + page - 1) / page * page + page;
    map_ =
        static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (map_ == MAP_FAILED || mprotect(map_ + mapped_ - page, page, PROT_NONE) != 0) {
      std::perror("mmap");
      std::exit(2);
    }
    data_ = map_ + mapped_ - page - (bytes + alignment - 1) / alignment * alignment;
    std::memset(map_, kPoison, mapped_ - page);
  }
  ~Guarded() { munmap(map_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <typename T>
  T* As() {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  // Whether the bytes before the data still hold poison.
  bool Untouched() const {
    return std::all_of(map_, data_, [](unsigned char byte) { return byte == kPoison; });
  }

 private:
  size_t bytes_, mapped_;
  unsigned char *map_, *data_;
};

}  // namespace bnnedge::test
