// SPDX-License-Identifier: Apache-2.0
// Matrix products on the GPU against loops in double: layouts, sizes that fit nothing, epilogues, and bits that repeat.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/matmul.hpp>

using namespace zeropp;
using kernels::Into, kernels::MatrixProduct, kernels::MatrixView, kernels::Products, kernels::row_major;
using kernels::linear_backward_input, kernels::linear_backward_weight, kernels::linear_forward,
    kernels::linear_gelu_backward_input, kernels::linear_gelu_forward, kernels::matmul;

namespace {

template <class T>
std::vector<T> numbers(std::int64_t n, std::uint64_t seed) {
  std::vector<T> out(static_cast<std::size_t>(n));
  for (auto& v : out) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<T>(static_cast<float>(static_cast<std::int64_t>(seed) >> 32) * 0x1p-31f);
  }
  return out;
}
template <class T>
double wide(T v) {
  return static_cast<double>(static_cast<compute_t<T>>(v));
}
template <class T>
constexpr double half_ulp = std::is_same_v<T, double>  ? 0x1p-53
                            : std::is_same_v<T, float> ? 0x1p-24
                            : std::is_same_v<T, f16>   ? 0x1p-11
                                                       : 0x1p-8;

/// Host numbers in the GPU's memory, `offset` elements after an aligned address.
template <class T>
class OnGpu {
 public:
  OnGpu(Cuda& gpu, const std::vector<T>& host, std::int64_t offset = 0)
      : gpu_(gpu), n_(host.size()), block_(gpu.pool(), {static_cast<std::int64_t>(host.size()) + offset}) {
    data = block_.data() + offset;
    if (n_) gpu.upload(data, host.data(), n_ * sizeof(T));
  }
  std::vector<T> host() {
    std::vector<T> out(n_);
    if (n_)
      gpu_.download(out.data(), data, n_ * sizeof(T));
    else
      gpu_.synchronize();
    return out;
  }
  T* data;

 private:
  Cuda& gpu_;
  std::size_t n_;
  Tensor<T, 1> block_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <class T>
std::vector<T> poison(std::int64_t n) {
  std::vector<T> out(static_cast<std::size_t>(n));
  if (n) std::memset(static_cast<void*>(out.data()), 0xff, out.size() * sizeof(T));
  return out;
}

/// Worst error in units of what rounding may do: of the result once, of `depth` sums of terms whose sizes add up to
/// `size` in the compute type, and `more` of a pass of its own.
template <class T>
struct Bound {
  double worst = 0;
  void see(T got, double want, double size, std::int64_t depth, double more = 0) {
    const double compute = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-24;
    // tensor cores truncate where they align summands: twice the unit of one that rounds
    const double bound = 1.01 * half_ulp<T> * std::abs(want) +
                         2 * compute * (std::sqrt(static_cast<double>(depth)) * 4 + 8) * size + more + 1e-30;
    const double error = std::abs(wide(got) - want) / bound;
    worst = error == error ? std::max(worst, error) : std::numeric_limits<double>::infinity();
  }
};

double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))); }
double gelu_slope(double x) {
  const double a = 0.79788456080286535588, b = 0.044715, t = std::tanh(a * (x + b * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * b * x * x);
}

struct Case {
  std::int64_t m, n, k;
  bool turn_a, turn_b;
  Into into;
  bool bias;
  std::int64_t offset, slack;  ///< elements: of all pointers from 64 bytes, and between rows
};

template <class A, class B, class T>
void against_loops(Cuda& gpu, const Case& c) {
  const auto a_width = (c.turn_a ? c.m : c.k) + c.slack, b_width = (c.turn_b ? c.k : c.n) + c.slack,
             c_width = c.n + c.slack;
  const auto a_host = numbers<A>((c.turn_a ? c.k : c.m) * a_width, 1);
  const auto b_host = numbers<B>((c.turn_b ? c.n : c.k) * b_width, 2);
  const auto bias_host = numbers<compute_t<T>>(c.n, 4);
  // in place where it adds, else over NaN; what lies between rows must stay
  const auto before = c.into == Into::add ? numbers<T>(c.m * c_width, 3) : poison<T>(c.m * c_width);
  OnGpu<A> a_gpu(gpu, a_host, c.offset);
  OnGpu<B> b_gpu(gpu, b_host, c.offset);
  OnGpu<compute_t<T>> bias(gpu, bias_host, c.offset);
  const MatrixView<A> a0{a_gpu.data, c.turn_a ? c.k : c.m, c.turn_a ? c.m : c.k, a_width};
  const MatrixView<B> b0{b_gpu.data, c.turn_b ? c.n : c.k, c.turn_b ? c.k : c.n, b_width};
  std::vector<T> got[2];
  for (auto& each : got) {
    OnGpu<T> to(gpu, before, c.offset);
    matmul(gpu, c.turn_a ? a0.t() : a0, c.turn_b ? b0.t() : b0, MatrixView<T>{to.data, c.m, c.n, c_width}, c.into,
           c.bias ? bias.data : nullptr);
    each = to.host();
  }
  CHECK(same_bits(got[0], got[1]));
  Bound<T> bound;
  bool kept = true;
  for (std::int64_t r = 0; r < c.m; ++r)
    for (std::int64_t j = 0; j < c_width; ++j) {
      const auto at = static_cast<std::size_t>(r * c_width + j);
      if (j >= c.n) {
        kept = kept && std::memcmp(&got[0][at], &before[at], sizeof(T)) == 0;
        continue;
      }
      double sum = c.into == Into::add ? wide(before[at]) : 0, size = std::abs(sum);
      for (std::int64_t p = 0; p < c.k; ++p) {
        const double term = wide(a_host[static_cast<std::size_t>(c.turn_a ? p * a_width + r : r * a_width + p)]) *
                            wide(b_host[static_cast<std::size_t>(c.turn_b ? j * b_width + p : p * b_width + j)]);
        sum += term;
        size += std::abs(term);
      }
      // a bias of another type than the result's is added in a pass of its own: one more rounding; and some algorithms
      // for small products round the product before they add it to what is there
      const double added = c.into == Into::add ? std::abs(sum - wide(before[at])) : 0;
      const double more = 1.01 * half_ulp<T> * ((c.bias ? std::abs(sum) : 0) + added);
      if (c.bias) sum += static_cast<double>(bias_host[static_cast<std::size_t>(j)]), size += 1;
      bound.see(got[0][at], sum, size, c.k, more);
    }
  CHECK(kept);
  CHECK(bound.worst <= 1);
}

template <class A, class B, class T>
void sweep(Cuda& gpu) {
  const std::int64_t sizes[][3] = {{1, 1, 1},    {7, 33, 1},   {33, 7, 65},    {64, 64, 64}, {128, 256, 96},
                                   {1, 300, 40}, {300, 1, 33}, {129, 72, 200}, {5, 8, 0},    {0, 4, 4}};
  int which = 0;
  for (const auto& s : sizes)
    for (int turned = 0; turned < 4; ++turned) {
      const Case c{s[0],
                   s[1],
                   s[2],
                   (turned & 1) != 0,
                   (turned & 2) != 0,
                   which % 3 == 0 ? Into::add : Into::overwrite,
                   which % 5 == 1,
                   which % 4 == 3 ? 1 : 0,
                   which % 7 == 2   ? 3
                   : which % 7 == 5 ? 8
                                    : 0};
      ++which;
      const auto what = text(c.m, "x", c.n, "x", c.k, " turned ", turned, " adds ", c.into == Into::add, " bias ",
                             c.bias, " offset ", c.offset, " slack ", c.slack);
      CAPTURE(what);
      against_loops<A, B, T>(gpu, c);
    }
}

}  // namespace

TEST_CASE("products of every layout, at any size and alignment") {
  Cuda gpu;
  SUBCASE("bf16") { sweep<bf16, bf16, bf16>(gpu); }
  SUBCASE("bf16 into float") { sweep<bf16, bf16, float>(gpu); }
  SUBCASE("f16") { sweep<f16, f16, f16>(gpu); }
  SUBCASE("f16 into float") { sweep<f16, f16, float>(gpu); }
  SUBCASE("float") { sweep<float, float, float>(gpu); }
  SUBCASE("double") { sweep<double, double, double>(gpu); }
  SUBCASE("float by bf16, which cuBLASLt does not have") { sweep<float, bf16, float>(gpu); }
}

TEST_CASE("a vocabulary of 50257") {
  Cuda gpu;
  against_loops<bf16, bf16, bf16>(gpu, {9, 50257, 40, false, true, Into::overwrite, false, 0, 15});
  against_loops<bf16, bf16, float>(gpu, {50257, 24, 9, true, false, Into::add, false, 0, 0});
}

TEST_CASE("shapes that do not fit are refused") {
  Cuda gpu;
  OnGpu<float> x(gpu, numbers<float>(64, 1));
  CHECK_THROWS_WITH_AS(matmul(gpu, row_major(x.data, 2, 3), row_major(x.data, 4, 2), row_major(x.data, 2, 2)),
                       doctest::Contains("does not fit"), ConfigError);
}

namespace {

/// All linear_* of one type against loops in double, at one size.
template <class T, class G>
void linear(std::int64_t n, std::int64_t in, std::int64_t out, bool fused, std::int64_t offset, Into into = Into::add) {
  const bool add = into == Into::add;
  const auto what = text(n, "x", in, "x", out, " fused ", fused, " offset ", offset, " adds ", add);
  CAPTURE(what);
  Cuda gpu;
  auto& options = gpu.companion<Products>().options;
  options.fused_gelu = options.fused_bias_gradient = fused;
  const auto x = numbers<T>(n * in, 1), w = numbers<T>(out * in, 2), b = numbers<T>(out, 3),
             dy = numbers<T>(n * out, 4), onto = numbers<T>(n * out, 5), pre_in = numbers<T>(n * in, 6);
  const auto dw0 = add ? numbers<G>(out * in, 7) : std::vector<G>(static_cast<std::size_t>(out * in)),
             db0 = add ? numbers<G>(out, 8) : std::vector<G>(static_cast<std::size_t>(out));
  OnGpu<T> gx(gpu, x, offset), gw(gpu, w, offset), gb(gpu, b, offset), gdy(gpu, dy, offset), gonto(gpu, onto, offset),
      gpre_in(gpu, pre_in, offset);
  const auto product = [&](std::int64_t r, std::int64_t c, double& size) {
    double sum = 0;
    for (std::int64_t p = 0; p < in; ++p) {
      const double term = wide(x[static_cast<std::size_t>(r * in + p)]) * wide(w[static_cast<std::size_t>(c * in + p)]);
      sum += term;
      size += std::abs(term);
    }
    return sum;
  };
  std::vector<T> first[7];
  std::vector<G> first_g[2];
  for (int run = 0; run < 2; ++run) {
    OnGpu<T> y(gpu, poison<T>(n * out), offset), y_onto(gpu, poison<T>(n * out), offset), y_in_place(gpu, onto, offset),
        pre(gpu, poison<T>(n * out), offset), act(gpu, poison<T>(n * out), offset), dx(gpu, poison<T>(n * in), offset),
        dpre(gpu, poison<T>(n * in), offset);
    OnGpu<G> dw(gpu, add ? dw0 : poison<G>(out * in), offset), db(gpu, add ? db0 : poison<G>(out), offset);
    linear_forward(gpu, gx.data, gw.data, gb.data, y.data, n, in, out, static_cast<const T*>(nullptr));
    linear_forward(gpu, gx.data, gw.data, gb.data, y_onto.data, n, in, out, static_cast<const T*>(gonto.data));
    linear_forward(gpu, gx.data, gw.data, static_cast<const T*>(nullptr), y_in_place.data, n, in, out,
                   static_cast<const T*>(y_in_place.data));
    linear_gelu_forward(gpu, gx.data, gw.data, gb.data, pre.data, act.data, n, in, out);
    linear_backward_input(gpu, gdy.data, gw.data, dx.data, n, in, out);
    linear_gelu_backward_input(gpu, gdy.data, gw.data, gpre_in.data, dpre.data, n, in, out);
    linear_backward_weight(gpu, gdy.data, gx.data, dw.data, db.data, n, in, out, into);
    const std::vector<T> now[] = {y.host(),   y_onto.host(), y_in_place.host(), pre.host(),
                                  act.host(), dx.host(),     dpre.host()};
    const std::vector<G> now_g[] = {dw.host(), db.host()};
    for (int i = 0; i < 7; ++i) {
      CAPTURE(i);
      if (run) CHECK(same_bits(now[i], first[i]));
      first[i] = now[i];
    }
    for (int i = 0; i < 2; ++i) {
      if (run) CHECK(same_bits(now_g[i], first_g[i]));
      first_g[i] = now_g[i];
    }
  }
  // error of activations: the hardware's tanh, which epilogues for 16 bits use, is good to 2^-11
  const double activation = is_half<T> ? 0x1p-10 : std::is_same_v<T, float> ? 0x1p-20 : 0x1p-48;
  Bound<T> bound[7];
  Bound<G> bound_g[2];
  for (std::int64_t r = 0; r < n; ++r)
    for (std::int64_t c = 0; c < out; ++c) {
      const auto at = static_cast<std::size_t>(r * out + c);
      double size = 0;
      const double s = product(r, c, size), with = s + wide(b[static_cast<std::size_t>(c)]);
      const double ulp = 1.01 * half_ulp<T>, o = wide(onto[at]);  // composed, each pass rounds once more
      bound[0].see(first[0][at], with, size + 1, in, ulp * std::abs(s));
      bound[1].see(first[1][at], with + o, size + 2, in, ulp * std::abs(s + o));
      bound[2].see(first[2][at], s + o, size + 1, in, ulp * std::abs(s));
      bound[3].see(first[3][at], with, size + 1, in, ulp * std::abs(s));
      // the slope of gelu is at most 1.13
      bound[4].see(first[4][at], gelu(with), 1.2 * (size + 1), in,
                   1.13 * ulp * (std::abs(s) + std::abs(with)) + activation * (1 + std::abs(with)));
    }
  for (std::int64_t r = 0; r < n; ++r)
    for (std::int64_t c = 0; c < in; ++c) {
      const auto at = static_cast<std::size_t>(r * in + c);
      double sum = 0, size = 0;
      for (std::int64_t p = 0; p < out; ++p) {
        const double term =
            wide(dy[static_cast<std::size_t>(r * out + p)]) * wide(w[static_cast<std::size_t>(p * in + c)]);
        sum += term;
        size += std::abs(term);
      }
      bound[5].see(first[5][at], sum, size, out);
      bound[6].see(first[6][at], sum * gelu_slope(wide(pre_in[at])), 1.2 * size, out,
                   (1.2 * half_ulp<T> + 2 * activation) * std::abs(sum));
    }
  for (std::int64_t o = 0; o < out; ++o) {
    double column = wide(db0[static_cast<std::size_t>(o)]), column_size = std::abs(column);
    for (std::int64_t r = 0; r < n; ++r) {
      column += wide(dy[static_cast<std::size_t>(r * out + o)]);
      column_size += std::abs(wide(dy[static_cast<std::size_t>(r * out + o)]));
    }
    bound_g[1].see(first_g[1][static_cast<std::size_t>(o)], column, column_size, n);
    for (std::int64_t i = 0; i < in; ++i) {
      const auto at = static_cast<std::size_t>(o * in + i);
      double sum = wide(dw0[at]), size = std::abs(sum);
      for (std::int64_t r = 0; r < n; ++r) {
        const double term =
            wide(dy[static_cast<std::size_t>(r * out + o)]) * wide(x[static_cast<std::size_t>(r * in + i)]);
        sum += term;
        size += std::abs(term);
      }
      bound_g[0].see(first_g[0][at], sum, size, n, 1.01 * half_ulp<G> * std::abs(sum - wide(dw0[at])));
    }
  }
  const char* names[] = {"forward", "onto", "in place", "pre", "gelu", "backward input", "gelu backward"};
  for (int i = 0; i < 7; ++i)
    CHECK_MESSAGE(bound[i].worst <= 1, names[i], ": ", bound[i].worst, " of what rounding may do");
  CHECK_MESSAGE(bound_g[0].worst <= 1, "dw: ", bound_g[0].worst);
  CHECK_MESSAGE(bound_g[1].worst <= 1, "dbias: ", bound_g[1].worst);
}

}  // namespace

TEST_CASE("linear layers: bias, sums, GELU and their backward, fused and composed") {
  for (bool fused : {true, false}) {
    linear<bf16, float>(64, 96, 128, fused, 0);
    linear<bf16, float>(257, 64, 200, fused, 0);
    linear<bf16, float>(33, 7, 50, fused, 0);  // rows on 2 bytes: no epilogue
    linear<bf16, float>(40, 64, 64, fused, 1);
    linear<bf16, bf16>(64, 96, 128, fused, 0);
    linear<f16, float>(64, 96, 128, fused, 0);
    linear<f16, float>(33, 7, 50, fused, 0);
    linear<float, float>(65, 48, 56, fused, 0);
    linear<double, double>(33, 17, 25, fused, 0);
    linear<bf16, float>(64, 96, 128, fused, 0, Into::overwrite);
    linear<bf16, float>(33, 7, 50, fused, 0, Into::overwrite);
    linear<float, float>(65, 48, 56, fused, 0, Into::overwrite);
  }
}

TEST_CASE("bias gradients are left out where there are none, and gelu's backward refuses its input as its output") {
  Cuda gpu;
  const auto x = numbers<bf16>(64 * 64, 1);
  OnGpu<bf16> a(gpu, x), b(gpu, x);
  OnGpu<float> dw(gpu, std::vector<float>(64 * 64));
  linear_backward_weight(gpu, a.data, b.data, dw.data, static_cast<float*>(nullptr), 64, 64, 64);
  CHECK(dw.host()[5] != 0);
  CHECK_THROWS_AS(linear_gelu_backward_input(gpu, a.data, b.data, a.data, a.data, 64, 64, 64), Error);
}

TEST_CASE("a search leaves no trace in results, and what it finds is found again") {
  const std::string folder = text("/tmp/zeropp-products-", static_cast<std::int64_t>(::getpid()));
  const std::int64_t n = 512, in = 256, out = 384;
  const auto x = numbers<bf16>(n * in, 1), w = numbers<bf16>(out * in, 2), b = numbers<bf16>(out, 3),
             dy = numbers<bf16>(n * out, 4), onto = numbers<bf16>(n * out, 5);
  const auto dw0 = numbers<float>(out * in, 6), db0 = numbers<float>(out, 7);
  std::vector<std::string> choices[3];
  std::vector<bf16> first_y, first_place, first_act;
  std::vector<float> first_dw, first_db;
  for (int device = 0; device < 3; ++device) {  // the second reads the file, the third finds garbage in it too
    if (device == 2)
      for (const auto& file : std::filesystem::directory_iterator(folder))
        std::ofstream(file.path(), std::ios::app) << "garbage\nkey 12 34\n \n\n";
    CAPTURE(device);
    Cuda gpu;
    auto& products = gpu.companion<Products>();
    products.use_folder(folder);
    products.options.search_from = 0;
    OnGpu<bf16> gx(gpu, x), gw(gpu, w), gb(gpu, b), gdy(gpu, dy);
    for (int run = 0; run < 3; ++run) {  // the first searches
      OnGpu<bf16> y(gpu, poison<bf16>(n * out)), place(gpu, onto), pre(gpu, poison<bf16>(n * out)),
          act(gpu, poison<bf16>(n * out));
      OnGpu<float> dw(gpu, dw0), db(gpu, db0);
      linear_forward(gpu, gx.data, gw.data, gb.data, y.data, n, in, out, static_cast<const bf16*>(nullptr));
      linear_forward(gpu, gx.data, gw.data, gb.data, place.data, n, in, out, static_cast<const bf16*>(place.data));
      linear_gelu_forward(gpu, gx.data, gw.data, gb.data, pre.data, act.data, n, in, out);
      linear_backward_weight(gpu, gdy.data, gx.data, dw.data, db.data, n, in, out);
      if (device == 0 && run == 0) {
        first_y = y.host(), first_place = place.host(), first_act = act.host();
        first_dw = dw.host(), first_db = db.host();
      }
      CHECK(same_bits(y.host(), first_y));
      CHECK(same_bits(place.host(), first_place));
      CHECK(same_bits(act.host(), first_act));
      CHECK(same_bits(dw.host(), first_dw));
      CHECK(same_bits(db.host(), first_db));
    }
    // in place twice adds twice: a search that ran on the live result would have added more
    double sum = wide(dw0[3]);
    for (std::int64_t r = 0; r < n; ++r)
      sum += wide(dy[static_cast<std::size_t>(r * out)]) * wide(x[static_cast<std::size_t>(r * in + 3)]);
    CHECK(std::abs(static_cast<double>(first_dw[3]) - sum) < 1e-3);
    products.for_each([&](const MatrixProduct&, const std::string& what) {
      choices[device].push_back(what.substr(0, what.rfind(',')));
    });
  }
  CHECK(choices[0].size() >= 4);
  CHECK(choices[1] == choices[0]);
  CHECK(choices[2] == choices[0]);
  std::filesystem::remove_all(folder);
}

TEST_CASE("a folder that cannot be written is as none") {
  Cuda gpu;
  auto& products = gpu.companion<Products>();
  products.use_folder("/proc/zeropp/products");
  products.options.search_from = 0;
  against_loops<bf16, bf16, float>(gpu, {64, 64, 64, true, false, Into::add, false, 0, 0});
}

TEST_CASE("the dry device asks for the memory that the GPU is asked for, and calls no library") {
  const auto layer = [](auto& device) {
    Pool::Program program(device.pool(), "step");
    Tensor<bf16, 1> x(device.pool(), {64 * 64}), w(device.pool(), {64 * 64}), y(device.pool(), {64 * 64});
    Tensor<float, 1> dw(device.pool(), {64 * 64}), db(device.pool(), {64});
    linear_forward(device, x.data(), w.data(), static_cast<const bf16*>(nullptr), y.data(), 64, 64, 64,
                   static_cast<const bf16*>(nullptr));
    linear_backward_weight(device, y.data(), x.data(), dw.data(), db.data(), 64, 64, 64);
    x = w = y = {};
    dw = db = {};
    program.finish();
    return device.pool().planned();
  };
  Cuda gpu;
  DryCuda dry;
  CHECK(layer(gpu) == layer(dry));
}
