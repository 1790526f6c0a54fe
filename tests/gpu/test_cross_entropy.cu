// SPDX-License-Identifier: Apache-2.0
// The head and its cross entropy on the GPU against loops in double: tiles, padded vocabularies, labels that do not
// count and labels that cannot be, the vocabulary in parts, bits that repeat.
#include <doctest/doctest.h>

#include <barrier>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cross_entropy_split.hpp>

using namespace zeropp;
using kernels::linear_cross_entropy, kernels::linear_cross_entropy_backward, kernels::linear_cross_entropy_part,
    kernels::linear_cross_entropy_part_backward, kernels::linear_logits, kernels::LossSum, kernels::PendingLoss,
    kernels::VocabularyPart, kernels::Into;

namespace {

template <class T>
std::vector<T> numbers(std::int64_t n, std::uint64_t seed, float scale = 1) {
  std::vector<T> out(static_cast<std::size_t>(n));
  for (auto& v : out) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<T>(scale * static_cast<float>(static_cast<std::int64_t>(seed) >> 32) * 0x1p-31f);
  }
  return out;
}
template <class T>
double wide(T v) {
  return static_cast<double>(static_cast<compute_t<T>>(v));
}

template <class T>
Tensor<T, 1> on_gpu(Cuda& gpu, const std::vector<T>& host) {
  Tensor<T, 1> out(gpu.pool(), {static_cast<std::int64_t>(host.size())});
  gpu.upload(out.data(), host.data(), host.size() * sizeof(T));
  return out;
}
template <class T>
std::vector<T> on_host(Cuda& gpu, const Tensor<T, 1>& x) {
  std::vector<T> out(static_cast<std::size_t>(x.size()));
  gpu.download(out.data(), x.data(), out.size() * sizeof(T));
  return out;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// Logits scaled so that a softmax has a few large terms.
template <class T, class G>
struct Head {
  std::int64_t n, width, vocabulary, used;
  std::vector<T> x = numbers<T>(n * width, 1, 4), w = numbers<T>(vocabulary * width, 2);
  std::vector<G> dw0 = numbers<G>(vocabulary * width, 3, 0.01f);
  std::vector<std::int32_t> labels = random_labels();
  double scale = 0.37;
  Into into = Into::add;

  /// The same where dw is overwritten.
  Head overwriting() const {
    auto head = *this;
    head.into = Into::overwrite;
    std::fill(head.dw0.begin(), head.dw0.end(), G{});
    return head;
  }

  std::vector<std::int32_t> random_labels() const {
    std::vector<std::int32_t> out;
    for (std::int64_t i = 0; i < n; ++i)
      out.push_back(i % 7 == 3 ? -1 : static_cast<std::int32_t>((i * 7919 + 13) % used));
    if (n > 2) out[0] = static_cast<std::int32_t>(used - 1), out[1] = 0;
    return out;
  }

  struct Result {
    LossSum loss;
    std::vector<T> dx;
    std::vector<G> dw;
    double evaluated = 0;
  };

  Result run(Cuda& gpu) const {
    const auto gx = on_gpu(gpu, x), gw = on_gpu(gpu, w);
    const auto gl = on_gpu(gpu, labels);
    auto dw = on_gpu(gpu, dw0);
    if (into == Into::overwrite)
      cuda_check(cudaMemsetAsync(dw.data(), 0xff, dw.span().size_bytes(), gpu.stream()), "poison");
    Tensor<T, 1> dx(gpu.pool(), {n * width});
    cuda_check(cudaMemsetAsync(dx.data(), 0xff, dx.span().size_bytes(), gpu.stream()), "poison");
    const std::span<const std::int32_t> all{gl.data(), static_cast<std::size_t>(n)};
    const auto trained = linear_cross_entropy_backward(gpu, gx.data(), gw.data(), all, dx.data(), dw.data(), width,
                                                       vocabulary, used, scale, into);
    const auto seen = linear_cross_entropy(gpu, gx.data(), gw.data(), all, width, vocabulary, used);
    return {trained.wait(), on_host(gpu, dx), on_host(gpu, dw), seen.wait().sum};
  }

  /// Relative errors against double: of the loss, and of the gradients in the Euclidean norm. With `rounded` the logits
  /// of the reference are rounded to T as those of the GPU are.
  struct Errors {
    double loss, dx, dw;
  };
  Errors errors(const Result& got, bool rounded) const {
    std::vector<double> dx(static_cast<std::size_t>(n * width)), dw(dw0.size()), row(static_cast<std::size_t>(used));
    double loss = 0;
    for (std::int64_t r = 0; r < n; ++r) {
      const auto label = labels[static_cast<std::size_t>(r)];
      if (label < 0) continue;
      double highest = -1e300, sum = 0;
      for (std::int64_t v = 0; v < used; ++v) {
        double logit = 0;
        for (std::int64_t i = 0; i < width; ++i)
          logit += wide(x[static_cast<std::size_t>(r * width + i)]) * wide(w[static_cast<std::size_t>(v * width + i)]);
        if (rounded) logit = wide(static_cast<T>(static_cast<compute_t<T>>(logit)));
        row[static_cast<std::size_t>(v)] = logit;
        highest = std::max(highest, logit);
      }
      const double target = row[static_cast<std::size_t>(label)];
      for (auto& v : row) sum += v = std::exp(v - highest);
      loss += std::log(sum) + highest - target;
      for (std::int64_t v = 0; v < used; ++v) {
        const double g = scale * (row[static_cast<std::size_t>(v)] / sum - (v == label));
        for (std::int64_t i = 0; i < width; ++i) {
          dx[static_cast<std::size_t>(r * width + i)] += g * wide(w[static_cast<std::size_t>(v * width + i)]);
          dw[static_cast<std::size_t>(v * width + i)] += g * wide(x[static_cast<std::size_t>(r * width + i)]);
        }
      }
    }
    const auto norm_error = [](const auto& have, const auto& want, const auto& before) {
      double error = 0, size = 1e-300;
      for (std::size_t i = 0; i < want.size(); ++i) {
        const double base = before.empty() ? 0 : wide(before[i]);
        error += (wide(have[i]) - base - want[i]) * (wide(have[i]) - base - want[i]);
        size += want[i] * want[i];
      }
      return std::sqrt(error / size);
    };
    return {std::abs(got.loss.sum - loss) / std::max(loss, 1e-300), norm_error(got.dx, dx, std::vector<T>{}),
            norm_error(got.dw, dw, dw0)};
  }

  void check(double loss_limit, double gradient_limit) const {
    const auto what = text(n, " rows of ", width, ", vocabulary ", used, " of ", vocabulary);
    CAPTURE(what);
    Cuda gpu;
    const auto got = run(gpu), again = run(gpu);
    std::int64_t count = 0;
    for (auto label : labels) count += label >= 0;
    CHECK(got.loss.count == count);
    CHECK(got.loss.sum == again.loss.sum);
    CHECK(got.evaluated == doctest::Approx(got.loss.sum).epsilon(1e-6));  // long rows are summed in other parts
    CHECK(same_bits(got.dx, again.dx));
    CHECK(same_bits(got.dw, again.dw));
    const auto error = errors(got, true);
    CHECK(error.loss <= loss_limit);
    CHECK(error.dx <= gradient_limit);
    CHECK(error.dw <= gradient_limit);
    if (std::is_same_v<T, bf16>) CHECK(errors(got, false).loss <= 5e-3);
    for (std::int64_t v = used; v < vocabulary; ++v)  // rows that are not real keep their gradients
      for (std::int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<std::size_t>(v * width + i);
        REQUIRE(std::memcmp(&got.dw[at], &dw0[at], sizeof(G)) == 0);
      }
  }
};

}  // namespace

// Against a reference with logits rounded to bf16 too, the loss differs where the float sum before that rounding fell
// on the other side: one logit in about a thousand, by 2^-8. Against unrounded logits it is that rounding: each loss by
// up to 2^-9 of its logit, with either sign. Gradients are bf16 between the kernel and the products: 2^-9 each.
TEST_CASE("loss and gradients in bf16") {
  Head<bf16, float>{600, 32, 1000, 1000}.check(1e-4, 4e-3);
  Head<bf16, float>{600, 32, 1000, 1000}.overwriting().check(1e-4, 4e-3);
  Head<bf16, float>{130, 16, 1024, 1003}.check(1e-4, 4e-3);
  Head<bf16, float>{77, 24, 257, 255}.check(1e-4, 4e-3);  // rows that begin on no 16 bytes but for the padding
  Head<bf16, float>{5, 8, 9, 9}.check(1e-4, 4e-3);
  Head<bf16, float>{1, 8, 1, 1}.check(1e-4, 4e-3);
  Head<bf16, bf16>{300, 32, 500, 499}.check(1e-4, 1e-2);  // dw is rounded at each tile
}
// Gradients of a scale as training in f16 has it: without one the small ones would be 0.
TEST_CASE("loss and gradients in f16") {
  Head<f16, float> scaled{600, 32, 1000, 1000};
  scaled.scale = 256;
  scaled.check(5e-5, 6e-4);
  Head<f16, float> odd{77, 24, 257, 255};
  odd.scale = 64;
  odd.check(5e-5, 6e-4);
}
TEST_CASE("loss and gradients in float and double") {
  Head<float, float>{600, 32, 1000, 1000}.check(1e-6, 1e-5);
  Head<float, float>{33, 7, 50, 49}.check(1e-6, 1e-5);
  Head<double, double>{300, 16, 333, 330}.check(1e-12, 1e-11);
}
TEST_CASE("rows as long as GPT-2's, and rows that shared memory does not hold") {
  Head<bf16, float>{9, 8, 50304, 50257}.check(1e-4, 4e-3);
  Head<bf16, float>{9, 8, 50257, 50257}.check(1e-4, 4e-3);
  Head<bf16, float>{5, 8, 128256, 128256}.check(1e-4, 4e-3);
  Head<float, float>{5, 8, 128256, 128000}.check(1e-6, 1e-5);
  Head<double, double>{3, 4, 50257, 50257}.check(1e-12, 1e-11);
}

TEST_CASE("tiles hold a quarter of the rows at most, cover all, and end where waves of multiprocessors do") {
  for (std::int64_t n : {1, 5, 128, 129, 600, 4096, 5000, 16384, 65536, 65537, 1 << 20})
    for (std::int64_t vocabulary : {1000, 50257, 50304, 128256}) {
      const auto rows = kernels::detail::head_rows(n, vocabulary, 768, 2, 132);
      CHECK(rows >= 1);
      CHECK(rows <= std::max<std::int64_t>(128, n / 4));
      CHECK((rows == n || rows % 128 == 0));
      CHECK(rows * vocabulary * 2 <= std::max<std::int64_t>(kernels::detail::cuda_logits_bytes, 128 * vocabulary * 2));
    }
  MESSAGE("65536 x 50304 x 768: tiles of ", kernels::detail::head_rows(65536, 50304, 768, 2, 132), " rows");
}

TEST_CASE("a label outside the vocabulary is thrown where the host waits") {
  Head<float, float> head{300, 8, 40, 37};
  head.labels[211] = 37;
  Cuda gpu;
  const auto x = on_gpu(gpu, head.x), w = on_gpu(gpu, head.w);
  const auto labels = on_gpu(gpu, head.labels);
  const std::span<const std::int32_t> all{labels.data(), 300};
  const auto loss = linear_cross_entropy(gpu, x.data(), w.data(), all, 8, 40, 37);
  CHECK_THROWS_WITH_AS(
      loss.wait(), doctest::Contains("label 37 at place 211 of the batch is outside the vocabulary of 37"), DataError);
  CHECK_THROWS_WITH_AS(gpu.synchronize(), doctest::Contains("label 37 at place 211"), DataError);
  CHECK_NOTHROW(gpu.synchronize());
  CHECK(kernels::count_labels(gpu, all) == 257);
  kernels::detail::check_labels(gpu, all, 37);
  CHECK_THROWS_AS(gpu.synchronize(), DataError);
  kernels::detail::check_labels(gpu, all, 38);
  CHECK_NOTHROW(gpu.synchronize());
}

TEST_CASE("a loss may be read late, twice, never, or after its device") {
  Head<float, float> head{300, 8, 40, 37};
  PendingLoss first, second;
  {
    Cuda gpu;
    const auto x = on_gpu(gpu, head.x), w = on_gpu(gpu, head.w);
    const auto labels = on_gpu(gpu, head.labels);
    const auto loss = [&](std::size_t rows) {
      return linear_cross_entropy(gpu, x.data(), w.data(), {labels.data(), rows}, 8, 40, 37);
    };
    first = loss(300);
    for (std::size_t i = 0; i < 50; ++i) static_cast<void>(loss(i));
    second = loss(10);
    CHECK(first.wait().sum == loss(300).wait().sum);
    CHECK(loss(0).wait().count == 0);
  }
  CHECK(first.wait().count == 257);
  CHECK(second.wait().count == 9);
  CHECK(first.done());
  CHECK(PendingLoss().wait().count == 0);
}

TEST_CASE("logits of some rows come to the host") {
  Cuda gpu;
  Head<float, float> head{20, 8, 40, 37};
  const auto x = on_gpu(gpu, head.x), w = on_gpu(gpu, head.w);
  const std::vector<std::int64_t> rows{3, 19, 0};
  std::vector<float> out(3 * 37, -1);
  linear_logits(gpu, x.data(), w.data(), rows, out, 8, 40, 37);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t v = 0; v < 37; ++v) {
      double want = 0;
      for (std::size_t k = 0; k < 8; ++k)
        want += wide(head.x[static_cast<std::size_t>(rows[i]) * 8 + k]) * wide(head.w[v * 8 + k]);
      REQUIRE(std::abs(static_cast<double>(out[i * 37 + v]) - want) < 1e-5);
    }
}

namespace {

/// Ranks as threads, each with a device of its own on one GPU; numbers are exchanged by way of the host.
template <class T>
void in_parts(std::int64_t n, std::int64_t width, std::int64_t vocabulary, std::int64_t used, int ranks, double limit) {
  const auto what = text(n, " rows, vocabulary ", used, " of ", vocabulary, " in ", ranks);
  CAPTURE(what);
  using C = compute_t<T>;
  const Head<T, float> head{n, width, vocabulary, used};
  const auto share = vocabulary / ranks;
  std::vector<std::vector<C>> numbers_of(static_cast<std::size_t>(ranks));
  std::vector<typename Head<T, float>::Result> results(static_cast<std::size_t>(ranks));
  std::barrier meet(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Cuda gpu;
      const auto me = static_cast<std::size_t>(rank);
      const auto x = on_gpu(gpu, head.x);
      const auto part_of = [&](const auto& whole) {
        return std::vector(whole.begin() + rank * share * width, whole.begin() + (rank + 1) * share * width);
      };
      const auto w = on_gpu(gpu, part_of(head.w));
      auto dw = on_gpu(gpu, part_of(head.dw0));
      const auto labels = on_gpu(gpu, head.labels);
      Tensor<T, 1> dx(gpu.pool(), {n * width});
      const std::span<const std::int32_t> all_labels{labels.data(), static_cast<std::size_t>(n)};
      const auto exchange = [&](std::span<const C> mine, std::span<C> all) {
        numbers_of[me].resize(mine.size());
        gpu.download(numbers_of[me].data(), mine.data(), mine.size_bytes());
        meet.arrive_and_wait();
        for (std::size_t r = 0; r < numbers_of.size(); ++r)
          gpu.upload(all.data() + r * mine.size(), numbers_of[r].data(), mine.size_bytes());
        gpu.synchronize();
        meet.arrive_and_wait();
      };
      const VocabularyPart part{{rank * share, (rank + 1) * share}, used, rank, ranks};
      const auto loss = linear_cross_entropy_part_backward(gpu, x.data(), w.data(), all_labels, dx.data(), dw.data(),
                                                           width, part, head.scale, exchange);
      const auto seen = linear_cross_entropy_part(gpu, x.data(), w.data(), all_labels, width, part, exchange);
      results[me] = {loss.wait(), on_host(gpu, dx), on_host(gpu, dw), seen.wait().sum};
    });
  for (auto& thread : threads) thread.join();
  auto whole = results[0];
  std::vector<float> dx(whole.dx.size());
  whole.dw.clear();
  for (const auto& each : results) {
    CHECK(each.loss.sum == whole.loss.sum);
    CHECK(each.loss.count == whole.loss.count);
    CHECK(each.evaluated == whole.loss.sum);
    for (std::size_t i = 0; i < dx.size(); ++i) dx[i] += static_cast<float>(static_cast<C>(each.dx[i]));
    whole.dw.insert(whole.dw.end(), each.dw.begin(), each.dw.end());
  }
  for (std::size_t i = 0; i < dx.size(); ++i) whole.dx[i] = static_cast<T>(static_cast<C>(dx[i]));
  const auto error = head.errors(whole, true);
  CHECK(error.loss <= limit);
  CHECK(error.dx <= 40 * limit);
  CHECK(error.dw <= 40 * limit);
}

}  // namespace

TEST_CASE("ranks that share the vocabulary: the same loss on each, and the gradients of the whole") {
  in_parts<bf16>(600, 32, 1000, 1000, 2, 2e-4);
  in_parts<bf16>(140, 32, 1024, 500, 4, 2e-4);  // the last ranks have no row that is real
  in_parts<float>(150, 16, 300, 290, 3, 1e-6);
  in_parts<float>(10, 16, 300, 290, 1, 1e-6);
}

TEST_CASE("the dry device asks for the memory that the GPU is asked for") {
  const auto head = [](auto& device) {
    Pool::Program program(device.pool(), "step");
    Tensor<bf16, 1> x(device.pool(), {600 * 32}), w(device.pool(), {1000 * 32}), dx(device.pool(), {600 * 32});
    Tensor<float, 1> dw(device.pool(), {1000 * 32});
    Tensor<std::int32_t, 1> labels(device.pool(), {600});
    if constexpr (!std::remove_reference_t<decltype(device)>::dry)
      cuda_check(cudaMemsetAsync(labels.data(), 0, 2400, device.stream()), "cudaMemsetAsync");
    static_cast<void>(linear_cross_entropy_backward(device, x.data(), w.data(),
                                                    std::span<const std::int32_t>{labels.data(), 600}, dx.data(),
                                                    dw.data(), 32, 1000, 1000, 1.0));
    const std::vector<std::int64_t> rows{0, 5};
    std::vector<float> out(2000);
    linear_logits(device, x.data(), w.data(), rows, out, 32, 1000, 1000);
    x = w = dx = {};
    dw = {};
    labels = {};
    program.finish();
    return device.pool().planned();
  };
  Cuda gpu;
  DryCuda dry;
  CHECK(head(gpu) == head(dry));
}
