// SPDX-License-Identifier: Apache-2.0
// A tier: memory beside the device's (plain, page-locked, a disk) and two asynchronous copies, `fetch` to the device
// and `store` from it. State that does not fit the device lives on one, its home.
//
//   PinnedTier tier{device};
//   TierBlock block = tier.allocate(bytes, Purpose::states);
//   Pending coming = tier.fetch(block, 0, place);   // beside what computes
//   coming.wait();                                  // what is enqueued for computing from now on finds the bytes
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/device/pool.hpp>
#include <zeropp/device/tiers/operation.hpp>

namespace zeropp {

namespace detail {

/// Where the blocks of a tier lie. Any thread may call it.
class TierMemory {
 public:
  struct Place {
    std::byte* address = nullptr;  ///< of memory
    std::uint64_t offset = 0;      ///< in a file
  };
  virtual ~TierMemory() = default;
  /// Throws where there is no room.
  virtual Place take(std::size_t bytes, Purpose purpose) = 0;
  virtual void give(Place place, std::size_t bytes) noexcept = 0;

  /// Requests through a staging buffer, which holds as many bytes and begins at a page. All but the ends of a block are
  /// whole pages. read() says where in the buffer the bytes are; prepare() where they must be for write().
  virtual std::byte* read(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) = 0;
  virtual std::byte* prepare(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) = 0;
  virtual void write(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) = 0;
};

/// The part of a tier that its blocks keep alive.
struct TierCore {
  Home home;
  std::size_t limit = 0;
  std::shared_ptr<TierMemory> memory;
  std::shared_ptr<HomeBooks> books;
  std::mutex mutex;
  std::size_t used = 0;
  /// The first error of a request, or of a store before its first one: state is not what it should be, and nothing is
  /// taken from the tier any more.
  std::exception_ptr failure;

  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex);
    if (!failure) failure = std::move(error);
  }
  void expect_whole() {
    const std::lock_guard lock(mutex);
    if (failure) std::rethrow_exception(failure);
  }
};

struct TierBlockState {
  std::shared_ptr<TierCore> core;
  TierMemory::Place place;
  std::size_t bytes = 0, taken = 0;
  Purpose purpose = Purpose::states;
  /// A copy that may be under way, of the pages [begin, end).
  struct Copy {
    std::shared_ptr<PendingSource> source;
    std::size_t begin, end;
    bool stores;
  };
  std::vector<Copy> copies;

  TierBlockState() = default;
  TierBlockState(const TierBlockState&) = delete;
  TierBlockState& operator=(const TierBlockState&) = delete;
  /// Copies that are under way end first.
  ~TierBlockState() {
    for (auto& copy : copies) try {
        copy.source->join_host(1);
      } catch (...) {  // said to who waited for it, and by the tier
      }
    core->memory->give(place, taken);
    core->books->give(core->home, taken, purpose);
    const std::lock_guard lock(core->mutex);
    core->used -= taken;
  }
};

}  // namespace detail

/// A handle to a block of a tier: copies share it, the last one gives it back. It may outlive its tier.
class TierBlock {
 public:
  TierBlock() = default;
  std::size_t size() const { return state_ ? state_->bytes : 0; }
  explicit operator bool() const { return state_ != nullptr; }

 private:
  friend class Tier;
  explicit TierBlock(std::shared_ptr<detail::TierBlockState> state) : state_(std::move(state)) {}
  std::shared_ptr<detail::TierBlockState> state_;
};

/// Used by one rank's thread, as its device is; its copies run elsewhere. Copies of the same part of a block run in the
/// order of their calls. Copies of different blocks do not: see `after`. It must not outlive its device.
class Tier {
 public:
  virtual ~Tier() = default;
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;

  Home home() const { return core_->home; }
  /// "disk: /nvme, direct access, 8 requests of 1 MiB each way": for logs.
  virtual std::string describe() const { return std::string(name_of(home())); }

  /// A block that begins at a multiple of `aligned_to`, a power of two up to a page. What it holds at first is not
  /// defined. Its room is taken now; throws MemoryError where there is none.
  TierBlock allocate(std::size_t bytes, Purpose purpose, std::size_t aligned_to = alignment);

  /// Copies bytes [offset, offset + to.size()) of the block to device memory, after what was enqueued for computing and
  /// after `after`. The host waits for an `after` that is not yet enqueued on a GPU where this copy is (page-locked
  /// memory after a disk), and for one of a source that only the rank's thread may ask; else never.
  [[nodiscard]] Pending fetch(const TierBlock& block, std::size_t offset, std::span<std::byte> to, Pending after = {}) {
    return copy(Direction::up, block, offset, to.data(), to.size(), std::move(after));
  }
  /// Copies device memory to the block. After wait() the device memory is free; after finish() the block holds it.
  [[nodiscard]] Pending store(const TierBlock& block, std::size_t offset, std::span<const std::byte> from,
                              Pending after = {}) {
    return copy(Direction::down, block, offset, const_cast<std::byte*>(from.data()), from.size(), std::move(after));
  }

 protected:
  enum class Direction : std::uint8_t { up, down };  ///< to the device, from it

  Tier(Home home, Pool& pool, std::shared_ptr<detail::TierMemory> memory, std::size_t limit)
      : core_(std::make_shared<detail::TierCore>()), device_(pool.alive()) {
    core_->home = home;
    core_->limit = limit;
    core_->memory = std::move(memory);
    core_->books = pool.home_books();
  }

  /// Starts a copy; `bytes` is not 0.
  virtual std::shared_ptr<PendingSource> start(Direction direction, std::shared_ptr<detail::TierBlockState> block,
                                               std::size_t offset, std::byte* device, std::size_t bytes,
                                               detail::Before before) = 0;
  const std::shared_ptr<detail::TierCore>& core() const { return core_; }
  const std::weak_ptr<const void>& device() const { return device_; }

 private:
  Pending copy(Direction direction, const TierBlock& block, std::size_t offset, std::byte* device, std::size_t bytes,
               Pending after);
  void expect_device() const {
    if (device_.expired())
      throw ConfigError(text("the device of the tier '", name_of(home()), "' is gone; a tier must not outlive it"));
  }

  std::shared_ptr<detail::TierCore> core_;
  std::weak_ptr<const void> device_;
};

inline TierBlock Tier::allocate(std::size_t bytes, Purpose purpose, std::size_t aligned_to) {
  expect_device();
  core_->expect_whole();
  if (aligned_to == 0 || aligned_to > page_size || (aligned_to & (aligned_to - 1)) != 0)
    throw ConfigError(text("a block of the tier '", name_of(home()), "' is to begin at a multiple of ", aligned_to,
                           " B; give a power of two up to ", page_size));
  const auto taken = whole_pages(bytes ? bytes : 1);
  std::size_t used = 0;
  {
    const std::lock_guard lock(core_->mutex);
    used = core_->used;
  }
  if (core_->limit && (taken > core_->limit || used > core_->limit - taken))
    throw MemoryError(text("no room for ", bytes, " B of ", purpose_names[static_cast<std::size_t>(purpose)],
                           " on the tier '", name_of(home()), "': ", used, " B are in use of a limit of ", core_->limit,
                           " B; keep less there, or raise the limit"));
  const auto place = core_->memory->take(taken, purpose);
  auto state = std::make_shared<detail::TierBlockState>();
  state->core = core_;
  state->place = place;
  state->bytes = bytes;
  state->taken = taken;
  state->purpose = purpose;
  core_->books->take(home(), taken, purpose);
  const std::lock_guard lock(core_->mutex);
  core_->used += taken;
  return TierBlock(std::move(state));
}

inline Pending Tier::copy(Direction direction, const TierBlock& block, std::size_t offset, std::byte* device,
                          std::size_t bytes, Pending after) {
  const auto& state = block.state_;
  const auto what = direction == Direction::up ? "fetch from" : "store to";
  expect_device();
  if (!state || state->core != core_)
    throw ConfigError(text(what, " the tier '", name_of(home()), "' names ", state ? "another tier's" : "no",
                           " block; give one of its own"));
  if (offset > state->bytes || bytes > state->bytes - offset)
    throw ConfigError(text(what, " the tier '", name_of(home()), "' asks for ", bytes, " B from byte ", offset,
                           " on of a block of ", state->bytes, " B"));
  if (bytes == 0) return after;

  auto held = after.let_go();
  detail::Before before{std::move(after), {}};
  const auto begin = offset / page_size * page_size, end = whole_pages(offset + bytes);
  const bool stores = direction == Direction::down;
  std::erase_if(state->copies, [](auto& other) { return other.source->done(1); });
  core_->expect_whole();  // a copy that failed has told the tier before it was over
  for (auto& other : state->copies)
    if ((stores || other.stores) && other.begin < end && begin < other.end) before.copies.push_back(other.source);
  std::shared_ptr<PendingSource> operation;
  try {
    operation = start(direction, state, offset, device, bytes, std::move(before));
  } catch (...) {
    if (stores) core_->fail(std::current_exception());
    throw;
  }
  state->copies.push_back({operation, begin, end, stores});
  Pending pending(std::move(operation));
  for (auto& one : held) pending.hold(std::move(one));
  return pending;
}

}  // namespace zeropp
