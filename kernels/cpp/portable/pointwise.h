// PointwiseKernel for instruction sets whose vectors the class `Lanes` describes. A tile is 6 pixels x all channels of
// a block; a product is one of a broadcast element of the image and a vector of weights. In an unnamed namespace: see
// output_transform.h.
#pragma once

#include <algorithm>
#include <cstring>

#include "bnnedge/pointwise_kernel.h"

namespace bnnedge {
namespace {

constexpr int kPointwisePixels = 6;

template <typename Lanes, int kVectors, int kPixels>
__attribute__((always_inline)) inline void PointwiseTile(const PointwiseStrip& run, const float* const* pixels,
                                                         float* output) {
  typename Lanes::Floats sum[kPixels][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Lanes::Load(run.bias + v * Lanes::kLanes);
  }
  const float* weights = run.weights;
  for (int64_t c = 0; c < run.channels; ++c, weights += kVectors * Lanes::kLanes) {
    typename Lanes::Floats w[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) w[v] = Lanes::Load(weights + v * Lanes::kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      const typename Lanes::Floats x = Lanes::Same(pixels[i][c]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Lanes::MultiplyAdd(x, w[v], sum[i][v]);
    }
  }
  const auto low = Lanes::Same(run.low), high = Lanes::Same(run.high);
  const bool whole = run.out_channels == kVectors * Lanes::kLanes;
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) {
    float values[kVectors * Lanes::kLanes];
    float* const to = output + i * run.out_pixel_step;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Lanes::Store((whole ? to : values) + v * Lanes::kLanes, Lanes::Clip(sum[i][v], low, high));
    }
    if (!whole) std::memcpy(to, values, static_cast<size_t>(run.out_channels) * sizeof(float));
  }
}

template <typename Lanes, int kVectors>
void RunPointwise(const PointwiseStrip& run) {
  int64_t x = run.first % run.width;
  const float* row = run.input + run.first / run.width * run.row_step;
  for (int64_t i = 0; i < run.pixels; i += kPointwisePixels) {
    const float* pixels[kPointwisePixels];
    const int64_t count = std::min<int64_t>(kPointwisePixels, run.pixels - i);
    for (int64_t j = 0; j < count; ++j) {
      pixels[j] = row + x * run.pixel_step;
      if (++x == run.width) x = 0, row += run.row_step;
    }
    float* const output = run.output + i * run.out_pixel_step;
    switch (count) {
      case 1:
        PointwiseTile<Lanes, kVectors, 1>(run, pixels, output);
        break;
      case 2:
        PointwiseTile<Lanes, kVectors, 2>(run, pixels, output);
        break;
      case 3:
        PointwiseTile<Lanes, kVectors, 3>(run, pixels, output);
        break;
      case 4:
        PointwiseTile<Lanes, kVectors, 4>(run, pixels, output);
        break;
      case 5:
        PointwiseTile<Lanes, kVectors, 5>(run, pixels, output);
        break;
      default:
        PointwiseTile<Lanes, kVectors, 6>(run, pixels, output);
    }
  }
}

}  // namespace
}  // namespace bnnedge
