#include "signs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../border.h"

namespace bnnedge::tflite {
namespace {

// Sums of such numbers are 0 or at least 2^-123.
constexpr float kSmallest = 0x1p-100f;
constexpr int64_t kMostWork = int64_t{1} << 26;

bool AreHarmless(const float* values, int64_t count) {
  return std::all_of(values, values + count, [](float value) {
    return value == 0.0f || (std::isfinite(value) && std::abs(value) >= kSmallest);
  });
}

bool AreHarmless(const std::vector<float>& values) {
  return AreHarmless(values.data(), static_cast<int64_t>(values.size()));
}

// A constant that broadcasts to [N, OH, OW, O] and is the same for all images.
class Map {
 public:
  Map() = default;
  explicit Map(const Value& value) : data_(value.As<const float>()) {
    int64_t step = 1;
    for (size_t axis = 4, at = value.shape.size(); axis-- > 0 && at-- > 0; step *= value.shape[at]) {
      steps_[axis] = value.shape[at] == 1 ? 0 : step;
    }
  }

  bool DependsOnImage() const { return steps_[0] != 0; }
  float At(int64_t y, int64_t x, int64_t o) const {
    return data_ == nullptr ? 0.0f : data_[y * steps_[1] + x * steps_[2] + o * steps_[3]];
  }

 private:
  const float* data_ = nullptr;
  int64_t steps_[4] = {};
};

// A border class: output pixels with the same taps inside the image. With q differing bits among these taps, v is an
// integer of the class plus 2 q.
struct Class {
  int64_t y, x;  // one of the pixels
  int64_t inside, outside;
  TapRange rows, columns;
};

class SignFinder {
 public:
  SignFinder(const BConv2dParams& params, const uint32_t* filter, const OutputTransform& transform,
             const TailBuilder& steps)
      : p_(params), filter_(filter), transform_(transform), tail_(steps.tail()), has_map_(steps.residual() != nullptr) {
    if (has_map_) map_ = Map(*steps.residual());
  }

  bool Find(Signs* signs) {
    if (!AreHarmless(transform_.multiplier) || !AreHarmless(transform_.bias) || !AreHarmless(tail_.offset) ||
        !AreHarmless(tail_.limit) || !tail_.slope.empty() || map_.DependsOnImage() || !FindClasses()) {
      return false;
    }
    signs->pad_value = has_map_ ? 0 : p_.pad_value;
    signs->threshold.clear();
    signs->negated.clear();
    for (int64_t o = 0; o < p_.out_channels; ++o) {
      if (!FindChannel(o, signs)) return false;
    }
    return true;
  }

 private:
  bool FindClasses() {
    const int64_t taps = p_.kernel_height * p_.kernel_width;
    if (!has_map_ && p_.pad_value == 1) {  // pixels outside count like all others
      classes_.push_back({0, 0, taps, 0, {0, p_.kernel_height}, {0, p_.kernel_width}});
      return true;
    }
    const int64_t height = p_.OutHeight(), width = p_.OutWidth();
    if (has_map_ && height * width > kMostWork / p_.out_channels) return false;
    const BorderClasses rows(height, p_.stride_height, p_.pad_top, p_.dilation_height, p_.in_height, p_.kernel_height);
    const BorderClasses columns(width, p_.stride_width, p_.pad_left, p_.dilation_width, p_.in_width, p_.kernel_width);
    const size_t count = rows.taps.size() * columns.taps.size();
    if (static_cast<int64_t>(count) > kMostWork / (p_.out_channels * taps * p_.FilterWords())) return false;
    classes_.assign(count, Class{-1, -1, 0, 0, {0, 0}, {0, 0}});
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const auto row = static_cast<size_t>(rows.of[static_cast<size_t>(y)]);
        const auto column = static_cast<size_t>(columns.of[static_cast<size_t>(x)]);
        Class& its = classes_[row * columns.taps.size() + column];
        if (its.y < 0) {
          const TapRange &r = rows.taps[row], &c = columns.taps[column];
          const int64_t inside = (r.last - r.first) * (c.last - c.first);
          its = {y, x, inside, taps - inside, r, c};
        } else if (has_map_ && !HasSameMap(its, y, x)) {
          return false;
        }
      }
    }
    return true;
  }

  bool HasSameMap(const Class& its, int64_t y, int64_t x) const {
    for (int64_t o = 0; o < p_.out_channels; ++o) {
      if (map_.At(its.y, its.x, o) != map_.At(y, x, o)) return false;
    }
    return true;
  }

  // The bits that are set in the filter of channel o at the taps outside.
  int64_t OnesOutside(const Class& its, int64_t o) const {
    int64_t ones = 0;
    const int64_t words = p_.FilterWords();
    const uint32_t* tap = filter_ + o * p_.kernel_height * p_.kernel_width * words;
    for (int64_t ky = 0; ky < p_.kernel_height; ++ky) {
      for (int64_t kx = 0; kx < p_.kernel_width; ++kx, tap += words) {
        if (ky >= its.rows.first && ky < its.rows.last && kx >= its.columns.first && kx < its.columns.last) continue;
        for (int64_t w = 0; w < words; ++w) {
          for (uint32_t bits = tap[w]; bits != 0; bits &= bits - 1) ++ones;
        }
      }
    }
    return ones;
  }

  bool IsNegative(int64_t v, float map, size_t o) const {
    const int64_t clamped = std::clamp<int64_t>(v, transform_.clamp_low, transform_.clamp_high);
    float y = static_cast<float>(clamped) * transform_.multiplier[o] + transform_.bias[o];
    if (has_map_) y += map;
    if (!tail_.offset.empty()) y += tail_.offset[o];
    y = y < tail_.low ? tail_.low : y;
    y = y > tail_.high ? tail_.high : y;
    return y < (tail_.limit.empty() ? 0.0f : tail_.limit[o]);
  }

  // The smallest q in [0, end) for which IsNegative is `wanted`, which it is for all larger q too; `end` if there is
  // none.
  int64_t FirstNegative(int64_t first_v, float map, size_t o, bool wanted, int64_t end) const {
    int64_t low = 0, high = end;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (IsNegative(first_v + 2 * middle, map, o) == wanted) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  bool FindChannel(int64_t o, Signs* signs) const {
    const auto at = static_cast<size_t>(o);
    const int64_t group_channels = p_.GroupChannels();
    const int64_t twice_k = 2 * p_.kernel_height * p_.kernel_width * group_channels;
    const bool rises = transform_.multiplier[at] > 0.0f;
    // Among the accumulators of the convolution that will run, the largest that gives a result of at least 0, and the
    // smallest that gives a negative one.
    int64_t most = -1, least = twice_k + 1;
    for (const Class& its : classes_) {
      const float map = map_.At(its.y, its.x, o);
      if (!AreHarmless(&map, 1)) return false;
      const int64_t ones = has_map_ && p_.pad_value == 1 ? OnesOutside(its, o) : 0;
      const int64_t zero_padded = group_channels * its.outside;
      const int64_t first = has_map_ && p_.pad_value == 1 ? 2 * ones : zero_padded;
      const int64_t end = group_channels * its.inside + 1;
      const int64_t turn = FirstNegative(first, map, at, !rises, end);
      // Results are negative from `turn` on, or before it if they rise with v.
      const int64_t before = zero_padded + 2 * (turn - 1), after = zero_padded + 2 * turn;
      if (turn > 0) Note(rises ? twice_k - before : before, rises, &most, &least);
      if (turn < end) Note(rises ? twice_k - after : after, !rises, &most, &least);
    }
    if (most >= least) return false;
    signs->threshold.push_back(static_cast<int32_t>(most));
    signs->negated.push_back(rises);
    return true;
  }

  static void Note(int64_t v, bool is_negative, int64_t* most, int64_t* least) {
    if (is_negative) {
      *least = std::min(*least, v);
    } else {
      *most = std::max(*most, v);
    }
  }

  const BConv2dParams& p_;
  const uint32_t* const filter_;
  const OutputTransform& transform_;
  const Tail& tail_;
  const bool has_map_;
  Map map_;
  std::vector<Class> classes_;
};

}  // namespace

bool FindSigns(const BConv2dParams& params, const uint32_t* filter, const OutputTransform& transform,
               const TailBuilder& steps, Signs* signs) {
  const Value* const residual = steps.residual();
  if (residual != nullptr && (!residual->is_constant || residual->shape.size() > 4)) return false;
  return SignFinder(params, filter, transform, steps).Find(signs);
}

std::vector<uint32_t> Negated(const BConv2dParams& params, const uint32_t* filter, const std::vector<bool>& negated) {
  if (std::find(negated.begin(), negated.end(), true) == negated.end()) return {};
  const int64_t words = params.FilterWords(), taps = params.kernel_height * params.kernel_width;
  std::vector<uint32_t> result(filter, filter + params.out_channels * taps * words);
  const int64_t spare = words * kWordBits - params.GroupChannels();
  for (int64_t i = 0; i < static_cast<int64_t>(result.size()); ++i) {
    if (!negated[static_cast<size_t>(i / (taps * words))]) continue;
    const uint32_t used = i % words == words - 1 ? UINT32_MAX >> spare : UINT32_MAX;
    result[static_cast<size_t>(i)] ^= used;
  }
  return result;
}

}  // namespace bnnedge::tflite
