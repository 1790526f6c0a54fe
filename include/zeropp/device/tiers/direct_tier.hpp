// SPDX-License-Identifier: Apache-2.0
// Copies of a tier whose memory the device reaches: one copy an operation. On a GPU it is enqueued on a stream for each
// direction; on the host a thread for each direction makes it.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include <zeropp/device/tiers/addressed_memory.hpp>
#include <zeropp/device/tiers/lane.hpp>

namespace zeropp::detail {

/// The operation of a dry device: nothing runs, and blocks are held as long as on the device that it plans for.
class DryOperation final : public PendingSource {
 public:
  void join(std::uint64_t) override {}
  void join_stream(std::uint64_t, void*) override {}
  bool done(std::uint64_t) override { return true; }
  bool any_thread() const override { return true; }
};

template <class D>
std::shared_ptr<TierMemory> addressed_memory(Home home) {
  if (home == Home::pinned)
    return std::make_shared<AddressedMemory>(home, D::dry, std::make_unique<typename Copies<D>::PinnedMemory>());
  return std::make_shared<AddressedMemory>(home, D::dry, std::make_unique<typename Copies<D>::HostMemory>());
}

template <class D>
class DirectTier : public Tier {
 protected:
  DirectTier(D& on, Home home, std::size_t limit)
      : Tier(home, on.pool(), addressed_memory<D>(home), limit),
        up_(std::make_unique<Way>(on)),
        down_(std::make_unique<Way>(on)) {}

  std::shared_ptr<PendingSource> start(Direction direction, std::shared_ptr<TierBlockState> block, std::size_t offset,
                                       std::byte* place, std::size_t bytes, Before before) override {
    auto& way = direction == Direction::up ? *up_ : *down_;
    auto* const here = block->place.address + offset;
    auto *to = direction == Direction::up ? place : here, *from = direction == Direction::up ? here : place;
    way.copies.begin();
    if (Copies<D>::enqueues)
      before.wait_on(way.copies.stream());
    else if (!before.after.any_thread())
      before.after.wait_on(nullptr);
    auto operation = std::make_shared<TierOperation<D>>(way.copies, device(), 1, std::move(before));
    const auto part = [&way, operation, block, to, from, bytes, stores = direction == Direction::down] {
      try {
        if (operation->begin()) {
          block->core->expect_whole();
          operation->hold_stream();
          way.copies.copy(to, from, bytes);
        } else if (stores) {
          block->core->fail(operation->error());
        }
      } catch (...) {
        operation->fail(std::current_exception());
        block->core->fail(std::current_exception());
      }
      operation->copied();
      operation->moved();
    };
    if constexpr (Copies<D>::enqueues)
      part();
    else
      way.lane.post(1, [part](int, std::int64_t) { part(); });
    return operation;
  }

 private:
  struct Way {
    explicit Way(D& on) : copies(on), lane(Copies<D>::enqueues ? 0 : 1) {}
    Copies<D> copies;
    Lane lane;
  };
  std::unique_ptr<Way> up_, down_;
};

template <class D>
requires D::dry class DirectTier<D> : public Tier {
 protected:
  DirectTier(D& on, Home home, std::size_t limit) : Tier(home, on.pool(), addressed_memory<D>(home), limit) {}
  std::shared_ptr<PendingSource> start(Direction, std::shared_ptr<TierBlockState>, std::size_t, std::byte*, std::size_t,
                                       Before) override {
    return dry_;
  }

 private:
  std::shared_ptr<PendingSource> dry_ = std::make_shared<DryOperation>();
};

}  // namespace zeropp::detail
