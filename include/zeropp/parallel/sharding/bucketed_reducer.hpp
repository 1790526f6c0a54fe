// SPDX-License-Identifier: Apache-2.0
// Sums gradients over ranks in buckets, in the order in which they become ready. A bucket is one grouped collective, so
// that small gradients share a rendezvous. Where communication runs beside computing, a bucket is under way while the
// next one fills. Usable alone, on buffers of your own:
//
//   BucketedReducer<float> reducer{comm, {.bucket_bytes = 1 << 20}};
//   reducer.reduce(gradient_of_last_layer, my_share_of_it);   // during backward
//   reducer.all_reduce(gradient_of_first_layer);
//   reducer.flush();                                          // all sums are there
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

struct BucketOptions {
  std::size_t bucket_bytes = std::size_t{16} << 20;  ///< a bucket is reduced when it holds this much; 0: at once
};

template <class T>
class BucketedReducer {
 public:
  explicit BucketedReducer(Comm comm, BucketOptions options = {}) : comm_(std::move(comm)), options_(options) {}

  /// `whole` is complete on this rank; its sum over ranks goes to the ranks in parts (`Piece` of comm.hpp: rank r owns
  /// from r · ceil(n / ranks)). `part` may lie inside `whole`. Both must stay where they are until `done` is called.
  /// All ranks call in the same order with the same sizes.
  void reduce(std::span<T> whole, std::span<T> part, std::function<void()> done = {}) {
    comm_.expect_part(whole.size(), part.size(), Collective::reduce_scatter);
    add({whole.data(), part.data(), static_cast<std::int64_t>(whole.size())}, false, std::move(done));
  }

  /// The same, and every rank gets the whole sum, in place: reduce_scatter, then all_gather of the same pieces.
  void all_reduce(std::span<T> whole, std::function<void()> done = {}) {
    const auto count = static_cast<std::int64_t>(whole.size());
    add({whole.data(), whole.data() + part_begin(count, comm_.rank(), comm_.size()), count}, true, std::move(done));
  }

  /// Reduces what is pending, and waits for it as computing does (Pending::wait). Call it on all ranks after the last
  /// gradient.
  void flush() {
    start();
    for (auto bucket = under_way_.rbegin(); bucket != under_way_.rend(); ++bucket) bucket->wait();
    for (auto& bucket : std::exchange(under_way_, {})) finish(bucket);
  }

  /// Begins to reduce what is pending. Memory that waits for the bucket before is free then; so no more than two
  /// buckets of it are held.
  void start() {
    if (pending_.empty()) return;
    auto entries = std::exchange(pending_, {});
    pending_bytes_ = 0;
    std::vector<Piece> pieces, whole;
    Bucket bucket;
    for (auto& entry : entries) {
      pieces.push_back(entry.piece);
      if (entry.whole) whole.push_back(entry.piece);
      if (entry.done) bucket.done.push_back(std::move(entry.done));
    }
    bucket.sum = comm_.reduce_scatter_async(dtype_of<T>, pieces);
    if (!whole.empty()) bucket.gathered = comm_.all_gather_async(dtype_of<T>, whole);
    for (auto& before : under_way_)
      if (!before.done.empty()) finish(before);
    if (bucket.sum.under_way())
      under_way_.push_back(std::move(bucket));
    else
      finish(bucket);
  }

  std::size_t pending_bytes() const { return pending_bytes_; }
  const Comm& comm() const { return comm_; }

  /// Forgets what is pending without reducing it: for the way out after an error.
  void drop() {
    under_way_.clear();
    pending_.clear();
    pending_bytes_ = 0;
  }

 private:
  struct Entry {
    Piece piece;
    bool whole;
    std::function<void()> done;
  };

  void add(Piece piece, bool whole, std::function<void()> done) {
    pending_bytes_ += static_cast<std::size_t>(piece.count) * sizeof(T);
    pending_.push_back({piece, whole, std::move(done)});
    if (pending_bytes_ >= options_.bucket_bytes) start();
  }

  /// A bucket that is being reduced.
  struct Bucket {
    Pending sum, gathered;
    std::vector<std::function<void()>> done;

    void wait() {
      gathered.wait();  // the later one first: then nothing is left to wait for
      sum.wait();
    }
  };
  static void finish(Bucket& bucket) {
    bucket.wait();
    for (auto& done : std::exchange(bucket.done, {})) done();
  }

  Comm comm_;
  BucketOptions options_;
  std::vector<Entry> pending_;
  std::size_t pending_bytes_ = 0;
  std::vector<Bucket> under_way_;
};

}  // namespace zeropp
