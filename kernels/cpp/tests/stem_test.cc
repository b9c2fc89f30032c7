// Compares every Stem that this CPU supports with the reference, code by code, float by float and bit by bit, on
// awkward sizes in both arithmetics, with several threads and any contents of the workspace; then checks what is
// rejected.
//   stem_test [kernel name]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "bnnedge/conv_kernel.h"
#include "bnnedge/stem_kernel.h"
#include "guarded.h"

namespace {

using namespace bnnedge;
using test::cases;
using test::Fail;
using test::failures;
using test::Random;

int64_t Pick(const std::vector<int64_t>& values) { return values[Random() % values.size()]; }
float Uniform(float low, float high) { return low + (high - low) * static_cast<float>(Random() >> 8) * 0x1p-24f; }

struct Case {
  StemParams params{};
  StemSize size{};
  Tail tail;
  std::vector<int8_t> filter;
  std::vector<float> scale, image, residual;
  std::vector<int32_t> bias;

  StemWeights Weights() const { return {filter.data(), scale.data(), bias.data()}; }
};

void MakeWindow(int64_t most, const std::vector<int64_t>& strides, KernelWindow* window) {
  for (int axis = 0; axis < 2; ++axis) {
    window->kernel[axis] = 1 + static_cast<int64_t>(Random()) % most;
    window->strides[axis] = Pick(strides);
    window->pads[axis] = static_cast<int64_t>(Random()) % window->kernel[axis];
    window->pads[axis + 2] = static_cast<int64_t>(Random()) % window->kernel[axis];
  }
}

// Half of the cases have scales that are powers of two and images of multiples of half a step, so that both roundings
// meet halves.
void FillNumbers(Case* c) {
  StemParams& p = c->params;
  const bool exact = Random() % 2 == 0;
  p.source = {exact ? 0.25f : Uniform(0.01f, 0.1f), static_cast<int32_t>(Pick({-128, -3, 0, 5, 127}))};
  p.target = {exact ? 0.5f : Uniform(0.01f, 0.1f), static_cast<int32_t>(Pick({-128, -128, -1, 64, 127}))};
  p.low_code = Random() % 4 == 0 ? -100 : -128;
  p.high_code = Random() % 4 == 0 ? 99 : 127;
  c->filter.resize(static_cast<size_t>(p.out_channels * p.FanIn()));
  for (int8_t& tap : c->filter) tap = Random() % 8 == 0 ? int8_t{-128} : static_cast<int8_t>(Random());
  if (Random() % 2 == 0) {  // no first and no last column in any filter, as of an odd filter that was folded
    const int64_t width = p.conv.kernel[1] * p.FilterChannels();
    for (size_t i = 0; i < c->filter.size(); ++i) {
      const int64_t at = static_cast<int64_t>(i) % width;
      if (at < p.channels || at >= width - p.channels) c->filter[i] = 0;
    }
  }
  if (Random() % 16 == 0) std::fill(c->filter.begin(), c->filter.end(), int8_t{0});
  for (int64_t o = 0; o < p.out_channels; ++o) {
    const float wanted = exact ? std::ldexp(1.0f, -static_cast<int>(Random() % 12)) : Uniform(0.0f, 0.05f);
    c->scale.push_back(o % 7 == 3 ? 0.0f : o % 11 == 5 ? 40.0f * wanted : wanted);
    c->bias.push_back(o % 13 == 6 ? static_cast<int32_t>(Random()) : static_cast<int32_t>(Random() % 4001) - 2000);
  }
  const StemSize& s = c->size;
  for (int64_t i = 0; i < s.batch * s.in_height * s.in_width * p.channels; ++i) {
    const float step = p.source.scale;
    c->image.push_back(exact ? 0.5f * step * static_cast<float>(static_cast<int32_t>(Random() % 600) - 300)
                             : Uniform(-140.0f * step, 140.0f * step));
  }
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(),
                       -0.0f,
                       3e38f,
                       -3e38f,
                       1e-42f};
  for (const float value : odd) c->image[Random() % c->image.size()] = value;
}

std::vector<float> PerChannel(int64_t channels) {
  std::vector<float> values;
  for (int64_t o = 0; o < channels; ++o) values.push_back(Uniform(-2.0f, 2.0f));
  return values;
}

void FillTail(Case* c) {
  const int64_t channels = c->params.out_channels;
  if (Random() % 2 == 0) c->tail.offset = PerChannel(channels);
  if (Random() % 4 == 0) c->tail.slope = PerChannel(channels);
  if (Random() % 4 == 0) c->tail.low = -1.0f, c->tail.high = 1.0f;
  c->tail.writes_bits = Random() % 4 != 0;
  if (c->tail.writes_bits && Random() % 2 == 0) c->tail.limit = PerChannel(channels);
  c->tail.adds_residual = Random() % 8 == 0;
  const StemSize& s = c->size;
  if (c->tail.adds_residual) c->residual = PerChannel(s.batch * s.out_height * s.out_width * channels);
}

// False if the random windows do not fit.
bool MakeCase(Case* c) {
  StemParams& p = c->params;
  p.channels = Pick({1, 2, 3, 3, 3, 4, 5, 17});
  p.out_channels = Pick({1, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 80});
  p.layout = Random() % 2 == 0 ? Layout::kNchw : Layout::kNhwc;
  p.fold = 1 + static_cast<int64_t>(Random() % 2);
  p.arithmetic = Random() % 2 == 0 ? Arithmetic::kFloat : Arithmetic::kFixedPoint;
  MakeWindow(p.fold == 2 ? 4 : 7, {1, 1, 2, 3}, &p.conv);
  p.pools = Random() % 2 == 0;
  if (p.pools) MakeWindow(4, {1, 2, 2, 5}, &p.pool);
  c->size.batch = Pick({1, 1, 2});
  c->size.in_height = p.fold * Pick({1, 2, 5, 7, 9, 14});
  c->size.in_width = p.fold * Pick({1, 3, 6, 7, 19, 20});
  std::string error;
  StemParams probe = p;
  probe.source = probe.target = {1.0f, 0};
  probe.high_code = 127;
  const std::vector<int8_t> filter(static_cast<size_t>(p.out_channels * p.FanIn()));
  const std::vector<float> scale(static_cast<size_t>(p.out_channels));
  const std::vector<int32_t> bias(static_cast<size_t>(p.out_channels));
  const auto stem = Stem::Create(probe, {filter.data(), scale.data(), bias.data()}, Tail{}, "reference", &error);
  if (stem == nullptr) {
    Fail("reference: " + error);
    return false;
  }
  if (!stem->Fit(&c->size).empty()) return false;
  FillNumbers(c);
  FillTail(c);
  return true;
}

struct Results {
  std::vector<float> output;
  std::vector<uint32_t> bits;
  std::vector<int8_t> quantized, convolved, pooled;
};

void RunAtOnce(void*, int64_t count, void (*piece)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(piece, context, i);
  for (std::thread& thread : threads) thread.join();
}

const StemKernel* Find(const std::string& name) {
  for (const StemKernel* kernel : StemKernels()) {
    if (name == kernel->name) return kernel;
  }
  return nullptr;
}

bool Run(const Case& c, const char* kernel, bool with_codes, bool with_output, int threads, Results* results) {
  std::string error;
  const StemKernel* const table = Find(kernel);
  const auto stem = table == nullptr ? Stem::Create(c.params, c.Weights(), c.tail, "reference", &error)
                                     : MakeStem(*table, kConvPortable, c.params, c.Weights(), c.tail);
  StemSize size = c.size;
  if (stem == nullptr || !(error = stem->Fit(&size)).empty()) {
    Fail(std::string(kernel) + ": " + error);
    return false;
  }
  const int64_t pixels = size.batch * size.out_height * size.out_width, channels = c.params.out_channels;
  const auto count = [](int64_t n) { return static_cast<size_t>(n); };
  StemTensors tensors{};
  // The image is in memory of exactly its size, for sanitizers.
  const std::vector<float> image = c.image;
  tensors.image = image.data();
  if (c.tail.adds_residual) tensors.residual = c.residual.data();
  results->output.assign(count(with_output ? pixels * channels : 0), std::nanf(""));
  if (with_output) tensors.output = results->output.data();
  results->bits.assign(count(c.tail.writes_bits ? pixels * WordsFor(channels) : 0), 0xa5a5a5a5u);
  if (c.tail.writes_bits) tensors.bits = results->bits.data();
  if (with_codes) {
    results->quantized.resize(count(size.batch * size.folded_height * size.folded_width * c.params.FilterChannels()));
    results->convolved.resize(count(size.batch * size.conv_height * size.conv_width * channels));
    results->pooled.resize(count(pixels * channels));
    tensors.quantized = results->quantized.data();
    tensors.convolved = results->convolved.data();
    tensors.pooled = results->pooled.data();
  }
  const auto bytes = static_cast<size_t>(size.workspace_bytes);
  void* const workspace = ::operator new(bytes, std::align_val_t{64});
  std::memset(workspace, 0xa5, bytes);
  stem->Run(size, tensors, workspace, threads == 1 ? Sequential() : Parallel{RunAtOnce, nullptr, threads});
  ::operator delete(workspace, std::align_val_t{64});
  return true;
}

std::string Describe(const Case& c, const char* kernel) {
  const StemParams& p = c.params;
  return std::string(kernel) + ": " + std::to_string(c.size.in_height) + "x" + std::to_string(c.size.in_width) + "x" +
         std::to_string(p.channels) + " -> " + std::to_string(p.out_channels) + ", fold " + std::to_string(p.fold) +
         ", kernel " + std::to_string(p.conv.kernel[0]) + "x" + std::to_string(p.conv.kernel[1]) + ", " +
         (p.arithmetic == Arithmetic::kFloat ? "float" : "fixed point") + (p.pools ? ", pool" : "");
}

template <typename T>
void Compare(const std::vector<T>& expected, const std::vector<T>& found, const std::string& what) {
  const bool is_same = expected.size() == found.size() &&
                       (found.empty() || std::memcmp(expected.data(), found.data(), found.size() * sizeof(T)) == 0);
  if (!is_same) Fail(what);
}

void Test(const Case& c, const char* kernel) {
  ++cases;
  Results expected, found;
  const std::string what = Describe(c, kernel);
  const bool with_output = !c.tail.writes_bits || Random() % 2 == 0;
  if (!Run(c, "reference", true, with_output, 1, &expected)) return;
  if (!Run(c, kernel, true, with_output, 1, &found)) return;
  Compare(expected.quantized, found.quantized, what + ": codes of the input");
  Compare(expected.convolved, found.convolved, what + ": codes of the convolution");
  Compare(expected.pooled, found.pooled, what + ": codes of the pool");
  Compare(expected.output, found.output, what + ": floats");
  Compare(expected.bits, found.bits, what + ": bits");
  Results again;
  if (!Run(c, kernel, false, with_output, 3, &again)) return;
  Compare(expected.output, again.output, what + ": floats, 3 threads");
  Compare(expected.bits, again.bits, what + ": bits, 3 threads");
}

// ImageNet's stem: large enough for threads.
Case LargeCase(Arithmetic arithmetic) {
  Case c;
  StemParams& p = c.params;
  p.channels = 3;
  p.out_channels = 64;
  p.layout = Layout::kNchw;
  p.fold = 2;
  p.arithmetic = arithmetic;
  p.conv = {{4, 4}, {1, 1}, {2, 2, 1, 1}};
  p.pools = true;
  p.pool = {{3, 3}, {2, 2}, {1, 1, 1, 1}};
  c.size.batch = 1;
  c.size.in_height = c.size.in_width = 90;
  FillNumbers(&c);
  c.tail.writes_bits = true;
  return c;
}

// Bytes of one value and filters of one value: the largest sums. The bias leaves little of them, so that codes tell the
// last bit.
void FillExtremes(bool is_high, int8_t tap, Case* c) {
  StemParams& p = c->params;
  p.source = {1.0f, -128};
  p.target = {1.0f, 3};
  std::fill(c->image.begin(), c->image.end(), is_high ? 1e9f : -1e9f);
  std::fill(c->filter.begin(), c->filter.end(), tap);
  std::fill(c->scale.begin(), c->scale.end(), 1.0f);
  for (size_t o = 0; o < c->bias.size(); ++o) {
    const auto sum = static_cast<int32_t>(p.FanIn() * (is_high ? 255 : 0) * tap);
    c->bias[o] = static_cast<int32_t>(o % 100) - sum;
  }
}

// Bytes 0 and 255, filters -128 and 127, at random.
void FillMixedExtremes(Case* c) {
  for (float& value : c->image) value = Random() % 2 == 0 ? 1e9f : -1e9f;
  for (int8_t& tap : c->filter) tap = Random() % 2 == 0 ? int8_t{-128} : int8_t{127};
  const float spread = std::sqrt(static_cast<float>(c->params.FanIn())) * 255.0f * 128.0f / 200.0f;
  for (float& scale : c->scale) scale = c->params.target.scale / c->params.source.scale / spread;
}

// `rows` output rows of `pixels`; all of the last one's windows are inside the image.
Case RowCase(int64_t rows, int64_t width, int64_t stride, int64_t channels, int64_t outputs, int64_t pixels) {
  Case c;
  StemParams& p = c.params;
  p.channels = channels;
  p.out_channels = outputs;
  p.layout = Layout::kNhwc;
  p.fold = 1;
  p.arithmetic = Random() % 2 == 0 ? Arithmetic::kFloat : Arithmetic::kFixedPoint;
  p.conv = {{rows, width}, {1, stride}, {rows - 1, 0, 0, 0}};
  c.size.batch = 1;
  c.size.in_height = rows;
  c.size.in_width = (pixels - 1) * stride + width;
  FillNumbers(&c);
  return c;
}

// Windows of a number of pixel steps, on tiles of 7 less as many pixels where they share products: rows of less than a
// tile, one, more, and more than are made at once.
void TestOverlaps(const char* kernel) {
  for (int64_t taps = 1; taps <= 6; ++taps) {
    const int64_t tile = 7 - taps;
    for (const int64_t channels : {1, 3, 4, 12, 13}) {
      for (const int64_t pixels : {int64_t{1}, tile, tile + 1, 6 * tile - 1, Pick({13, 27, 41}) * tile + 1}) {
        for (int numbers = 0; numbers < 3; ++numbers) {
          const int64_t stride = Pick({1, 1, 2, 3}), width = taps * stride - static_cast<int64_t>(Random()) % stride;
          Case c = RowCase(Pick({1, 2, 3}), width, stride, channels, Pick({1, 15, 16, 17, 33, 64}), pixels);
          if (numbers == 1) FillMixedExtremes(&c);
          if (numbers == 2) FillExtremes(Random() % 4 != 0, Random() % 2 == 0 ? int8_t{-128} : int8_t{127}, &c);
          Test(c, kernel);
        }
      }
    }
  }
  // The largest windows whose sums fit where products are shared: 9 * 913 bytes.
  for (const int64_t channels : {913, 914}) {
    Case c = RowCase(3, 3, 1, channels, 17, 9);
    FillExtremes(true, -128, &c);
    Test(c, kernel);
  }
  // The last pixel step of the windows lies behind the row but for a third.
  for (const int64_t channels : {23, 24, 25, 60}) Test(RowCase(2, 4, 3, channels, 16, 11), kernel);
}

void Rejects(const char* why, const Case& c, const char* expected) {
  std::string error;
  const auto stem = Stem::Create(c.params, c.Weights(), c.tail, nullptr, &error);
  StemSize size = c.size;
  if (stem != nullptr) error = stem->Fit(&size);
  if (error.find(expected) == std::string::npos) {
    Fail(std::string(why) + ": expected '" + expected + "', got '" + error + "'");
  }
}

void TestRejections() {
  const Case good = LargeCase(Arithmetic::kFloat);
  Case c = good;
  c.params.conv.pads[1] = 4;
  Rejects("pads as large as the kernel", c, "pads must be in [0, kernel)");
  c = good;
  c.params.pool.strides[0] = 0;
  Rejects("stride 0", c, "strides must be in");
  c = good;
  c.params.source.scale = 0.0f;
  Rejects("scale 0", c, "scale of the input must be finite and above 0");
  c = good;
  c.params.target.zero_point = 128;
  Rejects("zero point 128", c, "zero point of the output is no code");
  c = good;
  c.scale[5] = std::numeric_limits<float>::infinity();
  Rejects("infinite filter scale", c, "must be finite");
  c = good;
  c.scale[5] = 3e38f;
  c.params.target.scale = 1e-30f;
  Rejects("huge multiplier", c, "too large");
  c = good;
  c.size.in_width = 91;
  Rejects("odd width", c, "cannot be folded");
  c = good;
  c.size.in_height = 2;
  c.params.conv.pads[0] = c.params.conv.pads[2] = 0;
  Rejects("filter that does not fit", c, "does not fit");
  c = good;
  c.tail.offset = {1.0f};
  Rejects("short tail", c, "one value per output channel");
}

}  // namespace

int main(int argc, char** argv) {
  for (const StemKernel* kernel : StemKernels()) {
    if (argc > 1 && std::strcmp(kernel->name, argv[1]) != 0) continue;
    for (int i = 0; i < 400; ++i) {
      Case c;
      if (MakeCase(&c)) Test(c, kernel->name);
    }
    for (const Arithmetic arithmetic : {Arithmetic::kFloat, Arithmetic::kFixedPoint}) {
      Case c = LargeCase(arithmetic);
      Test(c, kernel->name);
    }
    TestOverlaps(kernel->name);
  }
  for (const char* name : ConvKernelNames()) {
    const StemKernel* const kernel = FindStemKernel(name);
    std::printf("%s: stem %s\n", name, kernel == nullptr ? "reference" : kernel->name);
  }
  TestRejections();
  std::printf("%lld cases, %lld failures\n", static_cast<long long>(cases), static_cast<long long>(failures));
  return failures == 0 && cases > 0 ? 0 : 1;
}
