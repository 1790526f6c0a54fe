// SPDX-License-Identifier: Apache-2.0
// BucketedReducer alone, on buffers of the caller's own.
#include <doctest/doctest.h>

#include <numeric>

#include <zeropp/base/random.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/parallel/sharding/bucketed_reducer.hpp>

using namespace zeropp;

namespace {

std::vector<float> gradient(int rank, int index, std::int64_t count) {
  const Random random(1, RandomPurpose::test, static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(index));
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i)
    values[static_cast<std::size_t>(i)] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
  return values;
}

}  // namespace

TEST_CASE("buckets reduce in the order of readiness; sums are in rank order for any bucket size") {
  const std::vector<std::int64_t> counts{1000, 3, 1, 0, 17, 4096};
  for (int ranks : {1, 2, 3, 8})
    for (std::size_t bucket_bytes : {std::size_t{0}, std::size_t{100}, std::size_t{5000}, std::size_t{1} << 30})
      run_ranks(ranks, {.limit = std::chrono::seconds(5)}, [&](Comm comm) {
        BucketedReducer<float> reducer{comm, {.bucket_bytes = bucket_bytes}};
        std::vector<std::vector<float>> whole, part;
        std::vector<int> done;
        for (std::size_t i = 0; i < counts.size(); ++i) {
          whole.push_back(gradient(comm.rank(), static_cast<int>(i), counts[i]));
          part.emplace_back(static_cast<std::size_t>(part_begin(counts[i], comm.rank() + 1, ranks) -
                                                     part_begin(counts[i], comm.rank(), ranks)));
        }
        for (std::size_t i = 0; i < counts.size(); ++i) {
          auto finished = [&done, i] { done.push_back(static_cast<int>(i)); };
          if (i % 2)
            reducer.all_reduce(whole[i], finished);
          else
            reducer.reduce(whole[i], part[i], finished);
          if (bucket_bytes == 0) CHECK(done.size() == i + 1);
        }
        reducer.flush();
        CHECK(reducer.pending_bytes() == 0);
        CHECK(done == std::vector<int>{0, 1, 2, 3, 4, 5});
        for (std::size_t i = 0; i < counts.size(); ++i) {
          std::vector<float> sum(static_cast<std::size_t>(counts[i]));
          for (int r = 0; r < ranks; ++r) {
            const auto of_rank = gradient(r, static_cast<int>(i), counts[i]);
            for (std::size_t k = 0; k < sum.size(); ++k) sum[k] = r ? sum[k] + of_rank[k] : of_rank[k];
          }
          const auto begin = static_cast<std::size_t>(part_begin(counts[i], comm.rank(), ranks));
          if (i % 2)
            CHECK(whole[i] == sum);
          else
            CHECK(part[i] == std::vector(sum.begin() + static_cast<std::ptrdiff_t>(begin),
                                         sum.begin() + static_cast<std::ptrdiff_t>(begin + part[i].size())));
        }
      });
}

TEST_CASE("small gradients share a rendezvous") {
  run_ranks(2, {.limit = std::chrono::seconds(5)}, [&](Comm comm) {
    std::vector<float> small(64, 1.0f), share(32);
    BucketedReducer<float> together{comm, {.bucket_bytes = 10 * 256}}, alone{comm, {.bucket_bytes = 0}};
    for (int i = 0; i < 20; ++i) together.reduce(small, share);
    together.flush();
    CHECK(comm.traffic().calls_of(Collective::reduce_scatter) == 2);
    for (int i = 0; i < 20; ++i) alone.reduce(small, share);
    CHECK(comm.traffic().calls_of(Collective::reduce_scatter) == 22);
    CHECK(share == std::vector<float>(32, 2.0f));
  });
}

TEST_CASE("a part of the wrong size is refused") {
  run_ranks(2, {.limit = std::chrono::seconds(5)}, [&](Comm comm) {
    std::vector<float> whole(10), part(4);
    BucketedReducer<float> reducer{comm, {.bucket_bytes = 0}};
    CHECK_THROWS_WITH_AS(reducer.reduce(whole, part), doctest::Contains("must hold 5 elements, got 4"), CommError);
  });
}
