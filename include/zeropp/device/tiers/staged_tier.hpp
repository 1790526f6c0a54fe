// SPDX-License-Identifier: Apache-2.0
// Copies of a tier that the device does not reach: each goes in requests through staging buffers, page-locked where the
// device is a GPU. For each direction there are as many threads as requests may be under way, with a buffer each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/shape.hpp>
#include <zeropp/device/tiers/direct_tier.hpp>

namespace zeropp::detail {

struct StagingOptions {
  std::size_t block_size = 0;  ///< bytes of a request: whole pages
  int requests = 1;            ///< under way at once, in each direction
  bool overlap = true;         ///< a copy's requests may begin while the ones of the copy before are under way
};

/// The staging buffers of a tier, in its device's books.
template <class D>
class StagingBuffers {
 public:
  StagingBuffers(D& on, const StagingOptions& options, Home of)
      : books_(on.pool().home_books()), block_size_(options.block_size) {
    if (options.block_size == 0 || options.block_size % page_size != 0)
      throw ConfigError(text("the tier '", name_of(of), "' is to have requests of ", options.block_size,
                             " B; give a multiple of ", page_size));
    if (options.requests < 1 || options.requests > 1024)
      throw ConfigError(
          text("the tier '", name_of(of), "' is to have ", options.requests, " requests under way; give 1 to 1024"));
    bytes_ = 2 * static_cast<std::size_t>(options.requests) * block_size_;
    base_ = memory_.allocate(bytes_);
    if (!base_)
      throw MemoryError(text("no room for ", bytes_, " B of staging buffers of the tier '", name_of(of),
                             "'; give fewer or smaller requests"));
    books_->take(Copies<D>::staging, bytes_, Purpose::buffers);
  }
  StagingBuffers(const StagingBuffers&) = delete;
  StagingBuffers& operator=(const StagingBuffers&) = delete;
  ~StagingBuffers() {
    memory_.deallocate(base_, bytes_);
    books_->give(Copies<D>::staging, bytes_, Purpose::buffers);
  }
  std::byte* operator[](int index) const { return base_ + static_cast<std::size_t>(index) * block_size_; }

 private:
  std::shared_ptr<HomeBooks> books_;
  std::size_t block_size_, bytes_ = 0;
  typename Copies<D>::StagingMemory memory_;
  std::byte* base_ = nullptr;
};

template <class D>
class StagedTier : public Tier {
 protected:
  StagedTier(D& on, Home home, std::shared_ptr<TierMemory> memory, std::size_t limit, StagingOptions options)
      : Tier(home, on.pool(), std::move(memory), limit),
        options_(options),
        buffers_(on, options, home),
        up_(std::make_unique<Way>(on, options.requests, buffers_, 0)),
        down_(std::make_unique<Way>(on, options.requests, buffers_, options.requests)) {}

  std::shared_ptr<PendingSource> start(Direction direction, std::shared_ptr<TierBlockState> block, std::size_t offset,
                                       std::byte* place, std::size_t bytes, Before before) override {
    auto& way = direction == Direction::up ? *up_ : *down_;
    way.copies.begin();
    if (!before.after.any_thread()) before.after.wait_on(way.copies.stream());
    if (!options_.overlap && way.last) before.copies.push_back(way.last);
    // Requests are cut at multiples of their size in the block, so that no two of them share a page.
    const auto first = offset / options_.block_size, last = (offset + bytes - 1) / options_.block_size;
    const auto parts = static_cast<std::int64_t>(last - first + 1);
    auto operation = std::make_shared<TierOperation<D>>(way.copies, device(), parts, std::move(before));
    if (!options_.overlap) way.last = operation;
    way.lane.post(
        parts, [this, direction, &way, operation, block, offset, place, bytes, first](int thread, std::int64_t index) {
          const auto size = options_.block_size, number = first + static_cast<std::size_t>(index);
          const Request request{std::max(offset, number * size), std::min(offset + bytes, (number + 1) * size)};
          auto* const at = place + (request.begin - offset);
          direction == Direction::up ? fetch_part(way, thread, *operation, *block, request, at)
                                     : store_part(way, thread, *operation, *block, request, at);
        });
    return operation;
  }

 private:
  struct Slot {
    std::byte* buffer;
    typename Copies<D>::Event emptied;  ///< or filled: the device's copy is over
  };
  struct Way {
    Way(D& on, int requests, const StagingBuffers<D>& buffers, int begin) : copies(on), lane(requests) {
      for (int i = 0; i < requests; ++i) slots.push_back({buffers[begin + i], {}});
    }
    Copies<D> copies;
    std::vector<Slot> slots;
    std::shared_ptr<PendingSource> last;
    Lane lane;
  };
  struct Request {
    std::size_t begin, end;  ///< in the block
    std::size_t size() const { return end - begin; }
  };

  static void fetch_part(Way& way, int thread, TierOperation<D>& operation, TierBlockState& block, Request request,
                         std::byte* to) {
    try {
      if (operation.begin()) {
        block.core->expect_whole();
        auto& slot = way.slots[static_cast<std::size_t>(thread)];
        way.copies.begin_thread();
        slot.emptied.wait();
        const auto* from = block.core->memory->read(block.place, request.begin, request.size(), slot.buffer);
        operation.hold_stream();
        way.copies.copy(to, from, request.size());
        slot.emptied.record(way.copies.stream());
      }
    } catch (...) {
      failed(operation, block);
    }
    operation.copied();
    operation.moved();
  }
  static void store_part(Way& way, int thread, TierOperation<D>& operation, TierBlockState& block, Request request,
                         const std::byte* from) {
    bool copied = false;
    try {
      if (operation.begin()) {
        block.core->expect_whole();
        auto& slot = way.slots[static_cast<std::size_t>(thread)];
        way.copies.begin_thread();
        auto* to = block.core->memory->prepare(block.place, request.begin, request.size(), slot.buffer);
        operation.hold_stream();
        way.copies.copy(to, from, request.size());
        slot.emptied.record(way.copies.stream());
        operation.copied();
        copied = true;
        slot.emptied.wait();
        block.core->memory->write(block.place, request.begin, request.size(), slot.buffer);
      } else {
        block.core->fail(operation.error());
      }
    } catch (...) {
      failed(operation, block);
    }
    if (!copied) operation.copied();
    operation.moved();
  }
  static void failed(TierOperation<D>& operation, TierBlockState& block) {
    operation.fail(std::current_exception());
    block.core->fail(std::current_exception());
  }

  StagingOptions options_;
  StagingBuffers<D> buffers_;
  std::unique_ptr<Way> up_, down_;
};

template <class D>
requires D::dry class StagedTier<D> : public Tier {
 protected:
  StagedTier(D& on, Home home, std::shared_ptr<TierMemory> memory, std::size_t limit, StagingOptions options)
      : Tier(home, on.pool(), std::move(memory), limit), buffers_(on, options, home) {}
  std::shared_ptr<PendingSource> start(Direction, std::shared_ptr<TierBlockState>, std::size_t, std::byte*, std::size_t,
                                       Before) override {
    return dry_;
  }

 private:
  StagingBuffers<D> buffers_;
  std::shared_ptr<PendingSource> dry_ = std::make_shared<DryOperation>();
};

}  // namespace zeropp::detail
