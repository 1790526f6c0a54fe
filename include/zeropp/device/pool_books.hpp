// SPDX-License-Identifier: Apache-2.0
// The books behind a Pool: what is live, what each program asked for, and where the packed plan puts it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/device/home.hpp>
#include <zeropp/device/memory.hpp>

namespace zeropp {

/// Shared ownership of a block: copies share it, the last one gives it back to its pool.
using Storage = std::shared_ptr<std::byte>;

struct PoolOptions {
  std::size_t limit = 0;  ///< bytes this pool may hold; 0: whatever the device has
  /// False: programs are recorded each time and never packed; for simulations, whose steps may make 10^5 requests.
  bool pack = true;
};

namespace detail {

/// The books of a pool; blocks keep it alive.
struct PoolBooks {
  struct Request {
    std::size_t bytes;
    Purpose purpose;
    std::size_t taken, freed;  ///< moments within the program; freed stays `never` for blocks that outlive it
    std::size_t offset = never;
  };
  struct Recording {
    std::vector<Request> requests;
    std::size_t extent = 0;
    bool packed = false;
  };
  static constexpr std::size_t never = ~std::size_t{0};

  PoolBooks(std::unique_ptr<Memory> m, PoolOptions o) : memory(std::move(m)), options(o) {}
  PoolBooks(const PoolBooks&) = delete;
  ~PoolBooks() {
    if (arena) memory->deallocate(arena, arena_bytes);
  }

  /// One block of the device. The deleter owns the books, so that a block may outlive its pool.
  Storage direct(const std::shared_ptr<PoolBooks>& self, std::size_t bytes, Purpose purpose, bool keep) {
    auto* block = allocate(bytes, purpose);
    if (keep) kept[purpose] += bytes;
    return Storage(block, [self, bytes, purpose, keep](std::byte* b) {
      self->memory->deallocate(b, bytes);
      self->allocated -= bytes;
      if (keep) self->kept[purpose] -= bytes;
    });
  }

  Storage planned(const std::shared_ptr<PoolBooks>& self, std::size_t bytes, Purpose purpose) {
    const auto index = cursor++;
    if (!program->packed) return recorded(self, index, bytes, purpose);
    if (index >= program->requests.size() || program->requests[index].bytes != bytes ||
        program->requests[index].purpose != purpose)
      throw MemoryError(text("request ", index, " of the program '", program_name, "' asks for ", bytes, " B of ",
                             purpose_names[static_cast<std::size_t>(purpose)],
                             index < program->requests.size()
                                 ? text(", its first run asked for ", program->requests[index].bytes, " B of ",
                                        purpose_names[static_cast<std::size_t>(program->requests[index].purpose)])
                                 : std::string(", its first run made no such request"),
                             "; give a step of another shape a program name of its own"));
    const auto& request = program->requests[index];
    if (request.offset == never) return direct(self, bytes, purpose, false);
    ++in_arena;
    return Storage(arena + request.offset, [self](std::byte*) { --self->in_arena; });
  }

  void expect_free(std::string_view who) const {
    if (program) throw MemoryError(text(who, " begins while '", program_name, "' runs; end it first"));
    if (in_arena) throw MemoryError(text(who, " begins while ", in_arena, " blocks of the last run are still held"));
  }
  void begin(std::uint64_t owner, std::string_view name) {
    if (program || in_arena) expect_free(text("program '", name, "'"));
    program_name = name;
    program_owner = owner;
    program = &programs[{owner, program_name}];
    cursor = moment = 0;
    live = {};
    ++run;
  }
  void abandon() {
    if (program && !program->packed) programs.erase({program_owner, program_name});
    program = nullptr;
  }
  /// The programs of an owner that is gone.
  void forget(std::uint64_t owner) {
    std::erase_if(programs, [&](const auto& entry) { return entry.first.first == owner; });
  }
  void end() {
    auto& recording = *program;
    if (recording.packed && cursor != recording.requests.size())
      throw MemoryError(text("program '", program_name, "' made ", cursor, " requests, its first run ",
                             recording.requests.size(), "; give a step of another shape a program name of its own"));
    program = nullptr;
    repeats = options.pack && std::all_of(recording.requests.begin(), recording.requests.end(),
                                          [](const Request& request) { return request.freed != never; });
    if (!options.pack) recording.requests.clear();
    if (recording.packed || !options.pack) return;
    pack(recording);
    if (recording.extent > arena_bytes) {
      if (arena) memory->deallocate(arena, arena_bytes);
      allocated -= arena_bytes;
      arena = nullptr;
      arena_bytes = 0;
      try {
        arena = allocate(recording.extent, Purpose::activations);
      } catch (...) {
        programs.clear();  // their places were in the arena that is gone
        throw;
      }
      arena_bytes = recording.extent;
    }
  }

 private:
  Storage recorded(const std::shared_ptr<PoolBooks>& self, std::size_t index, std::size_t bytes, Purpose purpose) {
    auto* block = allocate(bytes, purpose);
    program->requests.push_back({bytes, purpose, moment++, never});
    live[purpose] += bytes;
    if (live.total() > peak.total()) peak = live;
    return Storage(block, [self, index, bytes, purpose, this_run = run](std::byte* b) {
      self->memory->deallocate(b, bytes);
      self->allocated -= bytes;
      if (self->program && self->run == this_run) {
        self->live[purpose] -= bytes;
        self->program->requests[index].freed = self->moment++;
      }
    });
  }

  /// Largest first, each at the lowest place free for its whole life: within a few percent of the live peak on training
  /// steps (see docs/architecture.md). Blocks that outlived the recording stay outside the arena.
  static void pack(Recording& recording) {
    std::vector<Request*> order;
    for (auto& request : recording.requests)
      if (request.freed != never) order.push_back(&request);
    std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->bytes > b->bytes; });
    std::vector<Request*> placed;  // by offset
    for (auto* request : order) {
      std::size_t at = 0;
      for (auto* other : placed) {
        if (other->freed < request->taken || request->freed < other->taken) continue;
        if (at + aligned(request->bytes) <= other->offset) break;
        at = std::max(at, other->offset + aligned(other->bytes));
      }
      request->offset = at;
      recording.extent = std::max(recording.extent, at + aligned(request->bytes));
      placed.insert(std::upper_bound(placed.begin(), placed.end(), request,
                                     [](auto* a, auto* b) { return a->offset < b->offset; }),
                    request);
    }
    recording.packed = true;
  }

  std::byte* allocate(std::size_t bytes, Purpose purpose) {
    auto* block = options.limit && allocated + bytes > options.limit ? nullptr : memory->allocate(bytes ? bytes : 1);
    if (!block)
      throw MemoryError(text("no memory for ", bytes, " B of ", purpose_names[static_cast<std::size_t>(purpose)], ": ",
                             allocated, " B are in use",
                             options.limit ? text(" of a limit of ", options.limit, " B") : std::string(),
                             " (kept: ", describe(kept), "; in this step: ", describe(live),
                             "); use a smaller micro-batch or shorter sequences, recompute, or a higher ZeRO stage"));
    allocated += bytes;
    highest = std::max(highest, allocated);
    return block;
  }

 public:
  std::unique_ptr<Memory> memory;
  PoolOptions options;
  Bytes kept, live, peak;
  std::size_t allocated = 0, highest = 0;
  std::shared_ptr<HomeBooks> homes = std::make_shared<HomeBooks>();  ///< of the other tiers
  std::map<std::pair<std::uint64_t, std::string>, Recording> programs;  ///< by owner and name
  std::uint64_t owners = 0;                                             ///< that there were, to number them
  Recording* program = nullptr;
  std::string program_name;
  std::uint64_t program_owner = 0;
  std::size_t cursor = 0, moment = 0, run = 0;
  std::size_t in_arena = 0;
  std::byte* arena = nullptr;
  std::size_t arena_bytes = 0;
  bool repeats = false;  ///< of the program that ended last: no block outlived it
};

}  // namespace detail

}  // namespace zeropp
