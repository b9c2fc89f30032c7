// The convolution of a StemKernel by products of 16-bit integers whose sums have 32 bits, for instruction sets without
// a dot product of bytes. In an unnamed namespace: see output_transform.h.
//
// Windows that lie pixel_step bytes apart overlap, and share products (Toom-Cook; in the form for convolutions: Lavin
// and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, after Winograd). Let a tap be pixel_step bytes
// of each row, so that windows of r taps lie one tap apart, and a tile be m = 7 - r pixels, which meet 6 taps d[0..5]:
//   y[i] = sum over j < r of d[i + j] w[j],  i < m,
// for each byte of a tap. That takes m r products, or 6: one for each of the points 0, 1, -1, 2, -2 and infinity, in
// which the polynomials with coefficients d, w and y are evaluated and found again.
//   1. v[0] = 4 d[0] - 5 d[2] + d[4]
//      v[1], v[2] = d[4] - 4 d[2] +- (d[3] - 4 d[1])
//      v[3], v[4] = d[4] - d[2] +- 2 (d[3] - d[1])
//      v[5] = 4 d[1] - 5 d[3] + d[5]
//   2. u[p] = factor[p] * sum over j of w[j] point[p]^j, factors 6, -4, -4, 1, 1; u[5] = 24 w[r - 1]
//   3. M[p] = sum of v[p] u[p] over the bytes of taps of all rows: what takes the time, a matrix for each point
//   4. 24 y[i] = sum over p < 5 of M[p] point[p]^i, and M[5] too for i = m - 1.
// All of it is exact. Bytes give |v| <= 8 * 255 and |u| <= 31 * 128 (r = 5), both of 16 bits. Sums are modulo 2^32. So
// are 24 y and, times the inverse of 3, 8 y; which is in [-2^31, 2^31), as kMostBytes sees to: a shift leaves y.
//
// Where this does not pay, a window is one tap of row_steps bytes with one point, and y = M[0]: the direct form.
//
// An instruction set supplies, as a class Isa,
//   kMostTiles, the tiles of one round, 6 at most; kVectorBytes; kNeighbours, the bytes of a tap that filters keep
//   together Widen(bytes, shorts), which widens kWidened bytes
//   Multiply<tiles>(input, tile_step, weights, depth, products), one point of step 3: [tiles][16]
//   Codes<arithmetic>(requantization, channel), whose Store(sums, codes) is step 4 of stem.h for 16 sums, in vectors.
#pragma once

#include "bnnedge/rounding.h"
#include "stem_scalar.h"

namespace bnnedge {
namespace {

constexpr int64_t kPoints = 6;
constexpr int64_t kDepthUnit = 2;  // depths are multiples of it
// So many bytes are widened at once; those behind the end of a tap are overwritten by the next tap.
constexpr int64_t kWidened = 16;
// The most bytes of a window: 8 * 255 * 128 times as much is below 2^31.
constexpr int64_t kMostBytes = (int64_t{1} << 31) / (8 * 255 * 128);
// The least products that a pixel and channel must save. Measured on Zen 3: with 13 saved (3x3, 3 channels to 64) a
// stem takes 0.90 times as long as in the direct form, with 8 saved (5x5, 1 to 16) 1.11 times.
constexpr int64_t kLeastSaved = 12;
// The most values of tiles that are made before the first of them is multiplied: half of a first-level cache of 32 KiB.
constexpr int64_t kMostShorts = int64_t{8} << 10;
constexpr int64_t kRounds = 12;  // tiles, which are whole rounds of 4 and of 6

// How the rows of a stem are cut into tiles.
struct ToomCookTiling {
  int64_t taps, tap_bytes;
  int64_t points, outputs;  // of a tile
  int64_t depth;            // depth of the matrices: bytes of a tap in all rows
  int64_t depth_step;       // depth in whole vectors, as tiles are kept

  explicit ToomCookTiling(const StemShape& shape) : ToomCookTiling(shape, 1, shape.row_steps) {
    const int64_t overlapping = CeilDiv(shape.row_steps, shape.pixel_step);
    if (overlapping < 2 || overlapping >= kPoints || shape.Steps() > kMostBytes) return;
    const int64_t beyond = overlapping * shape.pixel_step - shape.row_steps;  // bytes of the last tap
    const ToomCookTiling shared(shape, overlapping, shape.pixel_step);
    const bool pays = (depth - kLeastSaved) * shared.outputs >= kPoints * shared.depth;
    if (pays && beyond + kWidened <= kStemSlack) *this = shared;
  }

  int64_t BlockWeights() const { return points * depth * kStemBlock; }
  int64_t Tiles(int64_t pixels) const { return CeilDiv(pixels, outputs); }
  // The taps that so many tiles meet.
  int64_t Columns(int64_t tiles) const { return tiles * outputs + taps - 1; }
  // The tiles of a row of so many pixels that are made before the first of them is multiplied.
  int64_t TilesAtOnce(int64_t pixels) const {
    const int64_t most = kMostShorts / (points * depth_step) / kRounds * kRounds;
    return std::min(Tiles(pixels), std::max(most, kRounds));
  }

 private:
  ToomCookTiling(const StemShape& shape, int64_t windows, int64_t bytes)
      : taps(windows),
        tap_bytes(bytes),
        points(windows == 1 ? 1 : kPoints),
        outputs(windows == 1 ? 1 : kPoints + 1 - windows),
        depth(RoundUp(shape.rows * bytes, kDepthUnit)),
        depth_step(RoundUp(shape.rows * bytes, kWidened)) {}
};

// ---- Filters: [blocks][points][depth / kNeighbours][16][kNeighbours] ----

int64_t PackedBytes(const StemShape& shape) {
  const ToomCookTiling tiling(shape);
  return shape.blocks * tiling.BlockWeights() * int64_t{sizeof(int16_t)};
}

// Step 2.
inline void TransformTaps(const int32_t* w, int64_t taps, int16_t* u) {
  constexpr int32_t kPoint[kPoints - 1] = {0, 1, -1, 2, -2}, kFactor[kPoints - 1] = {6, -4, -4, 1, 1};
  for (int64_t p = 0; p < kPoints - 1; ++p) {
    int32_t value = 0;
    for (int64_t j = taps - 1; j >= 0; --j) value = value * kPoint[p] + w[j];
    u[p] = static_cast<int16_t>(kFactor[p] * value);
  }
  u[kPoints - 1] = static_cast<int16_t>(24 * w[taps - 1]);
}

template <int64_t kNeighbours>
void PackWeights(const int8_t* filter, const StemShape& shape, void* packed) {
  const ToomCookTiling tiling(shape);
  std::memset(packed, 0, static_cast<size_t>(PackedBytes(shape)));
  for (int64_t channel = 0; channel < shape.blocks * kStemBlock; ++channel) {
    auto* const to = static_cast<int16_t*>(packed) + channel / kStemBlock * tiling.BlockWeights();
    for (int64_t k = 0; k < shape.rows * tiling.tap_bytes; ++k) {
      const int64_t row = k / tiling.tap_bytes, byte = k % tiling.tap_bytes;
      int32_t w[kPoints] = {};
      for (int64_t j = 0; j < tiling.taps && byte + j * tiling.tap_bytes < shape.row_steps; ++j) {
        w[j] = filter[(channel * shape.rows + row) * shape.row_steps + byte + j * tiling.tap_bytes];
      }
      int16_t u[kPoints] = {static_cast<int16_t>(w[0])};
      if (tiling.points > 1) TransformTaps(w, tiling.taps, u);
      for (int64_t p = 0; p < tiling.points; ++p) {
        const int64_t place = (p * tiling.depth + k) / kNeighbours * kStemBlock + channel % kStemBlock;
        to[place * kNeighbours + k % kNeighbours] = u[p];
      }
    }
  }
}

// ---- Windows ----

// Scratch holds int16: the widened columns [columns][depth_step], then the tiles [tiles][points][depth_step], unless
// the columns serve as tiles.
int64_t ScratchBytes(int64_t pixels, const StemShape& shape) {
  const ToomCookTiling tiling(shape);
  const int64_t tiles = tiling.TilesAtOnce(pixels), shares = tiling.points > 1 ? tiles * tiling.points : 0;
  return ((tiling.Columns(tiles) + shares) * tiling.depth_step + kWidened) * int64_t{sizeof(int16_t)};
}

template <typename T, int kBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};
template <typename T, int kBytes>
using Vector = typename VectorOf<T, kBytes>::Type;

template <typename V>
inline V LoadVector(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename V>
inline void StoreVector(void* to, const V& v) {
  std::memcpy(to, &v, sizeof(v));
}

// Widens taps `first` to `first + count`. Taps behind the row become 0, as only bytes give exact results.
template <typename Isa>
__attribute__((noinline)) void WidenColumns(const StemRow& row, const ToomCookTiling& tiling, int64_t first,
                                            int64_t count, uint16_t* to) {
  static_assert(kWidened <= kStemSlack, "bytes that may be read behind a row");
  const int64_t inside = std::min(count, row.pixels + tiling.taps - 1 - first);
  const int64_t rows = row.rows, row_step = row.row_step, tap_bytes = tiling.tap_bytes, depth_step = tiling.depth_step;
  for (int64_t i = 0; i < inside; ++i, to += depth_step) {
    const uint8_t* from = row.input + (first + i) * row.pixel_step;
    uint16_t* its = to;
    for (int64_t r = 0; r < rows; ++r, from += row_step, its += tap_bytes) {
      Isa::Widen(from, its);
      for (int64_t b = kWidened; b < tap_bytes; b += kWidened) Isa::Widen(from + b, its + b);
    }
  }
  std::memset(to, 0, static_cast<size_t>((count - inside) * depth_step) * sizeof(*to));
}

// Step 1.
template <int kVectorBytes>
inline void TransformColumns(const uint16_t* columns, const ToomCookTiling& tiling, int64_t tiles, uint16_t* to) {
  using Shorts = Vector<uint16_t, kVectorBytes>;
  const int64_t step = tiling.depth_step;
  for (int64_t t = 0; t < tiles; ++t, columns += tiling.outputs * step, to += kPoints * step) {
    for (int64_t k = 0; k < step; k += kVectorBytes / 2) {
      Shorts d[kPoints];
#pragma GCC unroll 6
      for (int64_t j = 0; j < kPoints; ++j) d[j] = LoadVector<Shorts>(columns + j * step + k);
      const Shorts even4 = d[4] - (d[2] << 2), odd4 = d[3] - (d[1] << 2);
      const Shorts even = d[4] - d[2], odd = (d[3] - d[1]) << 1;
      const Shorts v[kPoints] = {((d[0] - d[2]) << 2) + even, even4 + odd4, even4 - odd4, even + odd, even - odd,
                                 d[5] - d[3] - (odd << 1)};
#pragma GCC unroll 6
      for (int64_t p = 0; p < kPoints; ++p) StoreVector(to + p * step + k, v[p]);
    }
  }
}

// ---- Sums ----

template <typename Isa>
using StemProducts = uint32_t[kPoints][Isa::kMostTiles][kStemBlock];

// Step 4 of a tile, for the lanes of one vector.
template <int kTaps, typename V>
inline void InterpolateOutputs(const V* m, V* y) {
  if constexpr (kTaps == 1) {
    y[0] = m[0];
  } else {
    using Signed = Vector<int32_t, sizeof(V)>;
    constexpr uint32_t kThird = 0xaaaaaaab;  // 3 * kThird = 1 modulo 2^32
    constexpr int64_t kOutputs = kPoints + 1 - kTaps;
    const V ones[2] = {m[1] + m[2], m[1] - m[2]}, twos[2] = {m[3] + m[4], m[3] - m[4]};
#pragma GCC unroll 6
    for (int64_t i = 0; i < kOutputs; ++i) {
      V sum = ones[i % 2] + (twos[i % 2] << static_cast<uint32_t>(i));
      if (i == 0) sum += m[0];
      if (i == kOutputs - 1) sum += m[kPoints - 1];
      y[i] = (V)((Signed)(sum * kThird) >> 3);
    }
  }
}

// Step 3 of a round.
template <typename Isa, int64_t kTiles>
void MultiplyTiles(const ToomCookTiling& tiling, int64_t tiles, const uint16_t* input, const int16_t* weights,
                   StemProducts<Isa>& products) {
  if constexpr (kTiles > 1) {
    if (tiles < kTiles) return MultiplyTiles<Isa, kTiles - 1>(tiling, tiles, input, weights, products);
  }
  const auto* its = reinterpret_cast<const int16_t*>(input);
  for (int64_t p = 0; p < tiling.points; ++p, its += tiling.depth_step, weights += tiling.depth * kStemBlock) {
    Isa::template Multiply<kTiles>(its, tiling.points * tiling.depth_step, weights, tiling.depth, products[p]);
  }
}

// Stores the codes of a block's channels for the `pixels` pixels of a round.
template <typename Isa, Arithmetic kArithmetic, int kTaps>
void StoreTiles(const StemRow& row, const StemProducts<Isa>& products, int64_t pixel, int64_t pixels, int64_t block) {
  using Sums = Vector<uint32_t, Isa::kVectorBytes>;
  constexpr int64_t kOutputs = kTaps == 1 ? 1 : kPoints + 1 - kTaps, kTilePoints = kTaps == 1 ? 1 : kPoints;
  constexpr int64_t kLanes = Isa::kVectorBytes / 4, kVectors = kStemBlock / kLanes;
  const typename Isa::template Codes<kArithmetic> codes(row.codes, block * kStemBlock);
  Sums base[kVectors];
  for (int64_t z = 0; z < kVectors; ++z) base[z] = LoadVector<Sums>(row.base + block * kStemBlock + z * kLanes);
  int8_t* to = row.output + (pixel * row.blocks + block) * kStemBlock;
  for (int64_t t = 0; t * kOutputs < pixels; ++t) {
    Sums sums[kOutputs][kVectors];
#pragma GCC unroll 4
    for (int64_t z = 0; z < kVectors; ++z) {
      Sums m[kTilePoints], y[kOutputs];
#pragma GCC unroll 6
      for (int64_t p = 0; p < kTilePoints; ++p) m[p] = LoadVector<Sums>(products[p][t] + z * kLanes);
      InterpolateOutputs<kTaps>(m, y);
#pragma GCC unroll 6
      for (int64_t i = 0; i < kOutputs; ++i) sums[i][z] = y[i] + base[z];
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < kOutputs; ++i) {
      if (t * kOutputs + i == pixels) return;
      codes.Store(sums[i], to);
      to += row.blocks * kStemBlock;
    }
  }
}

template <typename Isa, Arithmetic kArithmetic>
auto TileStore(int64_t taps) {
  using Store = decltype(&StoreTiles<Isa, kArithmetic, 1>);
  constexpr Store kOfTaps[] = {StoreTiles<Isa, kArithmetic, 1>, StoreTiles<Isa, kArithmetic, 2>,
                               StoreTiles<Isa, kArithmetic, 3>, StoreTiles<Isa, kArithmetic, 4>,
                               StoreTiles<Isa, kArithmetic, 5>};
  return kOfTaps[taps - 1];
}

template <typename Isa>
void Convolve(const StemRow& row) {
  const ToomCookTiling tiling(row);
  const auto store = row.codes.arithmetic == Arithmetic::kFloat ? TileStore<Isa, Arithmetic::kFloat>(tiling.taps)
                                                                : TileStore<Isa, Arithmetic::kFixedPoint>(tiling.taps);
  const int64_t most = tiling.TilesAtOnce(row.pixels), round = Isa::kMostTiles * tiling.outputs;
  auto* const columns = static_cast<uint16_t*>(row.scratch);
  uint16_t* const transformed = columns + tiling.Columns(most) * tiling.depth_step;
  const uint16_t* const input = tiling.taps > 1 ? transformed : columns;
  for (int64_t first = 0; first < row.pixels; first += most * tiling.outputs) {
    const int64_t end = std::min(first + most * tiling.outputs, row.pixels), tiles = tiling.Tiles(end - first);
    WidenColumns<Isa>(row, tiling, first, tiling.Columns(tiles), columns);
    if (tiling.taps > 1) TransformColumns<Isa::kVectorBytes>(columns, tiling, tiles, transformed);
    for (int64_t block = 0; block < row.blocks; ++block) {
      const auto* const weights = static_cast<const int16_t*>(row.weights) + block * tiling.BlockWeights();
      const uint16_t* its = input;
      for (int64_t pixel = first; pixel < end;
           pixel += round, its += Isa::kMostTiles * tiling.points * tiling.depth_step) {
        StemProducts<Isa> products;
        const int64_t pixels = std::min(round, end - pixel);
        MultiplyTiles<Isa, Isa::kMostTiles>(tiling, tiling.Tiles(pixels), its, weights, products);
        store(row, products, pixel, pixels, block);
      }
    }
  }
}

}  // namespace
}  // namespace bnnedge
