// SPDX-License-Identifier: Apache-2.0
// Sums gradients over ranks in buckets, in the order in which they become ready. A bucket is one grouped collective, so
// that small gradients share a rendezvous. Usable alone, on buffers of your own:
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

  /// Reduces what is pending. Call it on all ranks after the last gradient.
  void flush() {
    if (pending_.empty()) return;
    auto entries = std::exchange(pending_, {});
    pending_bytes_ = 0;
    std::vector<Piece> pieces, whole;
    for (auto& entry : entries) {
      pieces.push_back(entry.piece);
      if (entry.whole) whole.push_back(entry.piece);
    }
    comm_.reduce_scatter(dtype_of<T>, pieces);
    if (!whole.empty()) comm_.all_gather(dtype_of<T>, whole);
    for (auto& entry : entries)
      if (entry.done) entry.done();
  }

  std::size_t pending_bytes() const { return pending_bytes_; }
  const Comm& comm() const { return comm_; }

  /// Forgets what is pending without reducing it: for the way out after an error.
  void drop() {
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
    if (pending_bytes_ >= options_.bucket_bytes) flush();
  }

  Comm comm_;
  BucketOptions options_;
  std::vector<Entry> pending_;
  std::size_t pending_bytes_ = 0;
};

}  // namespace zeropp
