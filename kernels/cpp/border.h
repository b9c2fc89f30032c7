// Which taps of a window lie inside the image, and the border classes: output rows (or columns) whose windows have the
// same taps inside.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace bnnedge {

// Taps [first, last) whose position start + tap * dilation lies in [0, size).
struct TapRange {
  int64_t first, last;

  static TapRange Inside(int64_t start, int64_t dilation, int64_t size, int64_t taps) {
    return {FirstAtLeast(start, dilation, 0, taps), FirstAtLeast(start, dilation, size, taps)};
  }

 private:
  static int64_t FirstAtLeast(int64_t start, int64_t dilation, int64_t limit, int64_t taps) {
    if (start >= limit) return 0;
    return std::min(taps, (limit - start + dilation - 1) / dilation);
  }
};

// The border classes along one axis.
struct BorderClasses {
  std::vector<int32_t> of;     // the class of each output position
  std::vector<TapRange> taps;  // the taps inside, for each class

  BorderClasses(int64_t outputs, int64_t stride, int64_t pad, int64_t dilation, int64_t size, int64_t kernel) {
    std::map<std::pair<int64_t, int64_t>, int32_t> known;
    of.reserve(static_cast<size_t>(outputs));
    for (int64_t i = 0; i < outputs; ++i) {
      const TapRange range = TapRange::Inside(i * stride - pad, dilation, size, kernel);
      const auto found = known.try_emplace({range.first, range.last}, static_cast<int32_t>(taps.size()));
      if (found.second) taps.push_back(range);
      of.push_back(found.first->second);
    }
  }
};

}  // namespace bnnedge
