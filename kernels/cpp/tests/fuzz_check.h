// Checks of results that both fuzz targets make.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace bnnedge {

// The fuzzer keeps the input that led here.
[[noreturn]] inline void Found(const std::string& what) {
  std::fprintf(stderr, "FOUND %s\n", what.c_str());
  std::abort();
}

// FNV-1a. The choices of a run, such as the kernel, depend on the hash of the input alone.
inline uint32_t Hash(const uint8_t* data, size_t size) {
  uint32_t hash = 2166136261u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 16777619u;
  return hash;
}

// The offset of the first difference, or `bytes` if there is none.
inline size_t FirstDifferentByte(const void* a, const void* b, size_t bytes) {
  const auto *const x = static_cast<const unsigned char*>(a), *const y = static_cast<const unsigned char*>(b);
  size_t at = 0;
  while (at < bytes && x[at] == y[at]) ++at;
  return at;
}

// The same for floats, bit for bit, but all NaN are equal.
inline size_t FirstDifferentFloat(const void* a, const void* b, size_t bytes) {
  for (size_t at = 0; at + sizeof(float) <= bytes; at += sizeof(float)) {
    float x, y;
    std::memcpy(&x, static_cast<const char*>(a) + at, sizeof(x));
    std::memcpy(&y, static_cast<const char*>(b) + at, sizeof(y));
    if (std::memcmp(&x, &y, sizeof(x)) != 0 && !(std::isnan(x) && std::isnan(y))) return at;
  }
  return bytes;
}

// A message is one line that names its source, with nothing that a terminal would act on.
inline bool IsOneLine(const std::string& text) {
  if (text.size() < 2 || text.back() != '\n') return false;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < ' ' || byte == 127) return false;
  }
  return true;
}

}  // namespace bnnedge
