// SPDX-License-Identifier: Apache-2.0
// The memory of one rank on one device. A training step asks for the same blocks in the same order every time, so the
// first run of a *program* ("train", "evaluate") is recorded and packed into one arena; from then on every request has
// its fixed place: no fragmentation, addresses that repeat, and a plan that is the peak.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include <zeropp/device/pool_books.hpp>

namespace zeropp {

class Pool {
 public:
  explicit Pool(std::unique_ptr<Memory> memory, PoolOptions options = {})
      : books_(std::make_shared<detail::PoolBooks>(std::move(memory), options)) {}

  /// A block for as long as the model lives (weights, optimizer states): not part of a program's plan.
  Storage take_persistent(std::size_t bytes, Purpose purpose) { return books_->direct(books_, bytes, purpose, true); }

  /// A block of the running program; outside a program, of the heap. Throws MemoryError.
  Storage take_temporary(std::size_t bytes, Purpose purpose) {
    return books_->program ? books_->planned(books_, bytes, purpose) : books_->direct(books_, bytes, purpose, false);
  }

  /// The programs of one model: several models on a device may each have a "train" of their own. They are forgotten
  /// with it.
  class Owner {
   public:
    explicit Owner(Pool& pool) : books_(pool.books_), number_(++books_->owners) {}
    ~Owner() { books_->forget(number_); }
    Owner(const Owner&) = delete;
    Owner& operator=(const Owner&) = delete;

   private:
    friend class Pool;
    std::shared_ptr<detail::PoolBooks> books_;
    std::uint64_t number_;
  };

  /// Marks the requests until its end as one run of the program `name`: recorded the first time, replayed afterwards.
  /// A replay that asks for something else than was recorded throws MemoryError.
  class Program {
   public:
    Program(Pool& pool, std::string_view name) : books_(pool.books_) { books_->begin(0, name); }
    Program(const Owner& owner, std::string_view name) : books_(owner.books_) { books_->begin(owner.number_, name); }
    ~Program() {
      if (books_) books_->abandon();
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;
    /// Ends the run in good order; without it (an exception) nothing is recorded.
    void finish() {
      books_->end();
      books_ = nullptr;
    }

   private:
    std::shared_ptr<detail::PoolBooks> books_;
  };

  /// Whether a program runs for the first time: its blocks come from the device and go back to it one by one.
  bool recording() const { return books_->program && !books_->program->packed; }

  /// Throws MemoryError if a program runs, or blocks of one are still held: `who` is about to use its places.
  void expect_free(std::string_view who) const { books_->expect_free(who); }
  /// Whether the program that ran last has fixed places for all its blocks.
  bool repeats() const { return books_->repeats; }
  /// Where they are: it changes when a program needs a larger arena.
  const std::byte* arena_base() const { return books_->arena; }

  /// Bytes of kept blocks by purpose, as asked for.
  const Bytes& kept() const { return books_->kept; }
  /// Live bytes by purpose at the moment of the highest total inside programs (kept blocks not included).
  const Bytes& peak() const { return books_->peak; }
  /// The arena that all programs share: the packed peak.
  std::size_t arena() const { return books_->arena_bytes; }
  /// All that this pool holds once its programs are recorded.
  std::size_t planned() const { return kept().total() + arena(); }
  /// Bytes taken from the device at this moment.
  std::size_t allocated() const { return books_->allocated; }

  /// Bytes of this rank in a home: on the device, or on the tiers made for it (device/tiers/tier.hpp).
  HomeBytes at(Home home) const {
    return home == Home::device ? HomeBytes{books_->allocated, books_->highest, books_->kept} : books_->homes->of(home);
  }
  /// For tiers: the books of their bytes, and a token that is gone with the device.
  const std::shared_ptr<detail::HomeBooks>& home_books() const { return books_->homes; }
  std::weak_ptr<const void> alive() const { return alive_; }

 private:
  std::shared_ptr<const void> alive_ = std::make_shared<char>();
  std::shared_ptr<detail::PoolBooks> books_;
};

}  // namespace zeropp
