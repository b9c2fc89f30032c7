// Up to 32 pixels x 32 output channels, AMX. One instruction multiplies the windows of 16 pixels by 16 channels over 64
// bytes, from tile registers. So the windows of a row of pixels are first copied next to each other (im2col), as
// [pixels][bytes] rounded up to whole tiles. The bytes behind a window may be anything, as the filter is 0 there.
// Tile registers at 32 x 32: 4 of sums, 2 of the image, 2 of the filter.
#include <utility>

#include "bnnedge/rounding.h"
#include "stem_avx512.h"

namespace bnnedge {
namespace {

constexpr int64_t kTilePixels = 16, kTileSteps = 16, kTileBytes = 1024, kLineBytes = 64;
constexpr int kSums = 4;  // tiles

int64_t DepthTiles(const StemShape& shape) { return CeilDiv(shape.Steps(), kTileSteps); }

int64_t PackedBytes(const StemShape& shape) { return shape.blocks * DepthTiles(shape) * kTileBytes; }

void PackWeights(const int8_t* filter, const StemShape& shape, void* packed) {
  PackByStep(filter, shape, DepthTiles(shape) * kTileSteps, packed);
}

int64_t PixelTiles(int64_t pixels) { return CeilDiv(pixels, kTilePixels); }

// Scratch holds the sums of two rounds, then the copied windows, behind which one line more may be written.
int64_t ScratchBytes(int64_t pixels, const StemShape& shape) {
  const double bytes = static_cast<double>(PixelTiles(pixels)) * static_cast<double>(DepthTiles(shape)) * kTileBytes;
  if (bytes > 0x1p46) return int64_t{1} << 47;
  return 2 * kSums * kTileBytes + PixelTiles(pixels) * DepthTiles(shape) * kTileBytes + kLineBytes;
}

// Copies in vectors of kBytes. The last one may write behind the end, where the next copy follows.
template <int kBytes>
inline void CopyBytes(const uint8_t* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; i += kBytes) {
    if (kBytes == 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
    if (kBytes == 32) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), bytes);
    }
    if (kBytes == 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bytes);
    }
  }
}

template <int kBytes>
void Im2Col(const StemRow& row, int64_t window_bytes, uint8_t* to) {
  const int64_t bytes = row.row_steps * kStemTaps;
  for (int64_t i = 0; i < row.pixels; ++i) {
    const uint8_t* from = row.input + i * row.pixel_step;
    for (int64_t r = 0; r < row.rows; ++r, from += row.row_step) {
      CopyBytes<kBytes>(from, bytes, to + i * window_bytes + r * bytes);
    }
  }
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Keeps stores before loads of tiles, since compilers do not know that these read memory.
inline void FinishStores() { __asm__ volatile("" ::: "memory"); }

// sums: [pixel tiles][channel tiles][16][16]
template <bool kTwoPixelTiles, bool kTwoBlocks>
inline void Multiply(const uint8_t* windows, int64_t window_bytes, const uint8_t* weights, int64_t block_bytes,
                     int64_t depth, int32_t* sums) {
  _tile_zero(0);
  if (kTwoBlocks) _tile_zero(1);
  if (kTwoPixelTiles) _tile_zero(2);
  if (kTwoPixelTiles && kTwoBlocks) _tile_zero(3);
  for (int64_t k = 0; k < depth; ++k, windows += kLineBytes, weights += kTileBytes) {
    _tile_loadd(4, windows, window_bytes);
    _tile_loadd(6, weights, kLineBytes);
    _tile_dpbusd(0, 4, 6);
    if (kTwoBlocks) {
      _tile_loadd(7, weights + block_bytes, kLineBytes);
      _tile_dpbusd(1, 4, 7);
    }
    if (kTwoPixelTiles) {
      _tile_loadd(5, windows + kTilePixels * window_bytes, window_bytes);
      _tile_dpbusd(2, 5, 6);
      if (kTwoBlocks) _tile_dpbusd(3, 5, 7);
    }
  }
  constexpr int64_t kTile = kTilePixels * kStemBlock;
  _tile_stored(0, sums, kLineBytes);
  if (kTwoBlocks) _tile_stored(1, sums + kTile, kLineBytes);
  if (kTwoPixelTiles) _tile_stored(2, sums + 2 * kTile, kLineBytes);
  if (kTwoPixelTiles && kTwoBlocks) _tile_stored(3, sums + 3 * kTile, kLineBytes);
}

// The part of a row that is multiplied at once: 32 pixels, or those that are left, x 32 or 16 channels.
struct Round {
  int64_t first, pixels, block, blocks;
};

template <typename ToCodes>
void StoreCodes(const StemRow& row, const ToCodes& codes, const Round& round, const int32_t* sums) {
  for (int64_t z = 0; z < round.blocks; ++z) {
    const int64_t channel = (round.block + z) * kStemBlock;
    const __m512i base = _mm512_loadu_si512(row.base + channel);
    const auto to_code = codes.For(channel);
    int8_t* to = row.output + round.first * row.blocks * kStemBlock + channel;
    for (int64_t i = 0; i < round.pixels; ++i, to += row.blocks * kStemBlock) {
      const int32_t* const sum = sums + ((i / kTilePixels * 2 + z) * kTilePixels + i % kTilePixels) * kStemBlock;
      const __m128i code = to_code.Of(_mm512_add_epi32(_mm512_load_si512(sum), base));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), code);
    }
  }
}

// Convolves a row. The sums of a round become codes while the tiles of the next round are multiplied.
template <typename ToCodes>
void ConvolveTo(const StemRow& row) {
  const ToCodes codes(row.codes);
  const int64_t depth = DepthTiles(row), window_bytes = depth * kLineBytes;
  const int64_t block_bytes = depth * kTileBytes;
  uint8_t* const windows = static_cast<uint8_t*>(row.scratch) + 2 * kSums * kTileBytes;
  const int64_t row_bytes = row.row_steps * kStemTaps;
  row_bytes <= 16   ? Im2Col<16>(row, window_bytes, windows)
  : row_bytes <= 32 ? Im2Col<32>(row, window_bytes, windows)
                    : Im2Col<64>(row, window_bytes, windows);
  int32_t *sums = static_cast<int32_t*>(row.scratch), *finished = sums + kSums * kTileBytes / 4;
  Round before{};
  for (int64_t block = 0; block < row.blocks; block += 2) {
    const auto* const weights = static_cast<const uint8_t*>(row.weights) + block * block_bytes;
    for (int64_t first = 0; first < row.pixels; first += 2 * kTilePixels) {
      const Round round{first, std::min(2 * kTilePixels, row.pixels - first), block,
                        std::min<int64_t>(2, row.blocks - block)};
      const auto multiply = round.pixels > kTilePixels
                                ? round.blocks == 2 ? Multiply<true, true> : Multiply<true, false>
                            : round.blocks == 2 ? Multiply<false, true>
                                                : Multiply<false, false>;
      FinishStores();
      multiply(windows + first * window_bytes, window_bytes, weights, block_bytes, depth, sums);
      FinishStores();
      StoreCodes(row, codes, before, finished);
      before = round;
      std::swap(sums, finished);
    }
  }
  StoreCodes(row, codes, before, finished);
}

void Convolve(const StemRow& row) {
  const TileConfig config;
  _tile_loadconfig(&config);
  row.codes.arithmetic == Arithmetic::kFloat ? ConvolveTo<FloatCodes>(row) : ConvolveTo<FixedPointCodes>(row);
  _tile_release();
}

}  // namespace

constexpr StemKernel kStemAmx = [] {
  StemKernel kernel;
  kernel.name = "amx";
  kernel.packed_bytes = PackedBytes;
  kernel.pack_weights = PackWeights;
  kernel.scratch_bytes = ScratchBytes;
  kernel.quantize = QuantizeValues;
  kernel.interleave = Interleave;
  kernel.convolve = Convolve;
  kernel.pool = PoolRow<Avx512Bytes, SseBytes>;
  kernel.dequantize = DequantizeCodes;
  return kernel;
}();

}  // namespace bnnedge
