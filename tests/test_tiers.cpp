// SPDX-License-Identifier: Apache-2.0
// Tiers of the host as a device: bytes come back from each of them, whatever the sizes, orders and chains; faults of
// disks are sentences and no torn state is read; a plan on the dry device counts the bytes that are used.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <deque>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <zeropp/device/dry.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/device/tiers/disk_tier.hpp>
#include <zeropp/device/tiers/host_tier.hpp>
#include <zeropp/device/tiers/lease.hpp>
#include <zeropp/device/tiers/pinned_tier.hpp>

using namespace zeropp;

namespace {

/// Faults of a disk, which the calls below have while a test asks for them.
struct Faults {
  std::atomic<int> write_error{0}, read_error{0}, open_error{0}, reserve_error{0};  ///< an errno
  std::atomic<bool> refuse_direct{false}, refuse_direct_requests{false}, refuse_unnamed{false};
  std::atomic<bool> short_transfers{false}, interrupts{false};
  std::atomic<int> at_once{0}, most_at_once{0}, releases{0};
  std::atomic<int> delay_us{0};
} faults;

struct Counted {
  Counted() {
    const int now = ++faults.at_once;
    for (int most = faults.most_at_once; now > most && !faults.most_at_once.compare_exchange_weak(most, now);) {
    }
    if (faults.delay_us) ::usleep(static_cast<useconds_t>(faults.delay_us));
  }
  ~Counted() { --faults.at_once; }
};
/// Every third call is interrupted.
bool interrupted() {
  static std::atomic<int> calls{0};
  return faults.interrupts && ++calls % 3 == 0;
}
std::size_t shortened(std::size_t bytes) { return faults.short_transfers && bytes > 100 ? bytes / 3 : bytes; }
ssize_t failed(int error) {
  errno = error;
  return -1;
}

}  // namespace

// The program's own calls take the place of the C library's.
extern "C" ssize_t pread(int file, void* to, size_t bytes, off_t offset) {
  const Counted counted;
  if (faults.read_error) return failed(faults.read_error);
  if (interrupted()) return failed(EINTR);
  return syscall(SYS_pread64, file, to, shortened(bytes), offset);
}
extern "C" ssize_t pwrite(int file, const void* from, size_t bytes, off_t offset) {
  const Counted counted;
  if (faults.write_error) return failed(faults.write_error);
  if (faults.refuse_direct_requests && (::fcntl(file, F_GETFL) & O_DIRECT)) return failed(EINVAL);
  if (interrupted()) return failed(EINTR);
  return syscall(SYS_pwrite64, file, from, shortened(bytes), offset);
}
extern "C" int fallocate(int file, int mode, off_t offset, off_t bytes) {
  if (mode & FALLOC_FL_PUNCH_HOLE) ++faults.releases;
  if (mode == 0 && faults.reserve_error) {  // as a disk that fills up meanwhile: it keeps what it got
    syscall(SYS_fallocate, file, mode, offset, bytes);
    return static_cast<int>(failed(faults.reserve_error));
  }
  return static_cast<int>(syscall(SYS_fallocate, file, mode, offset, bytes));
}
extern "C" int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const int mode = va_arg(more, int);
  va_end(more);
  if ((flags & O_TMPFILE) == O_TMPFILE) {
    if (faults.open_error) return static_cast<int>(failed(faults.open_error));
    if (faults.refuse_unnamed) return static_cast<int>(failed(EOPNOTSUPP));
    if (faults.refuse_direct && (flags & O_DIRECT)) return static_cast<int>(failed(EINVAL));
  }
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

namespace {

/// A folder that is gone at the end.
struct Folder {
  Folder() {
    char name[] = "/tmp/zeropp-tiers-XXXXXX";
    REQUIRE(::mkdtemp(name));
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  bool empty() const { return std::filesystem::is_empty(path); }
  std::string path;
};

struct Reset {
  ~Reset() {
    faults.write_error = faults.read_error = faults.open_error = faults.reserve_error = faults.delay_us = 0;
    faults.refuse_direct = faults.refuse_direct_requests = faults.refuse_unnamed = false;
    faults.short_transfers = faults.interrupts = false;
  }
};

std::vector<std::byte> bytes_of(std::size_t count, unsigned seed) {
  std::vector<std::byte> bytes(count);
  for (auto& b : bytes) b = static_cast<std::byte>((seed = seed * 1664525u + 1013904223u) >> 24);
  return bytes;
}
std::vector<std::byte> read_back(Tier& tier, const TierBlock& block) {
  std::vector<std::byte> bytes(block.size());
  tier.fetch(block, 0, bytes).wait();
  return bytes;
}

/// Odd sizes and offsets, each part written over the ones before, then the whole compared.
void there_and_back(Tier& tier) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{4095}, std::size_t{4097}, std::size_t{300001}}) {
    CAPTURE(size);
    const auto block = tier.allocate(size, Purpose::states);
    auto expected = bytes_of(size, 1);
    tier.store(block, 0, expected).finish();
    CHECK(read_back(tier, block) == expected);
    unsigned seed = 2;
    for (const std::size_t offset : {std::size_t{0}, size / 3, size / 2, size - 1})
      for (const std::size_t count : {std::size_t{1}, std::size_t{17}, std::size_t{8192}, size}) {
        const auto n = std::min(count, size - offset);
        const auto part = bytes_of(n, ++seed);
        tier.store(block, offset, part).wait();  // the part may go: the tier has read it
        std::copy(part.begin(), part.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
        std::vector<std::byte> back(n);
        tier.fetch(block, offset, back).wait();
        REQUIRE(back == part);
      }
    CHECK(read_back(tier, block) == expected);
  }
}

/// All under way at once, in both directions; each block is stored, fetched, and stored again without a wait between.
void many_in_flight(Tier& tier) {
  constexpr int count = 40;
  std::vector<TierBlock> blocks;
  std::vector<std::vector<std::byte>> first(count), second(count), back(count);
  std::vector<Pending> pending;
  for (int i = 0; i < count; ++i) {
    const auto n = static_cast<std::size_t>(1000 + 1777 * i);
    const auto at = static_cast<std::size_t>(i);
    first[at] = bytes_of(n, static_cast<unsigned>(i)), second[at] = bytes_of(n, static_cast<unsigned>(100 + i));
    back[at].resize(n);
    blocks.push_back(tier.allocate(n, Purpose::states));
    pending.push_back(tier.store(blocks[at], 0, first[at]));
    pending.push_back(tier.fetch(blocks[at], 0, back[at]));
    pending.push_back(tier.store(blocks[at], 0, second[at]));
  }
  for (auto& one : pending) one.finish();
  for (auto& one : pending) CHECK(one.done());
  CHECK(back == first);
  for (std::size_t i = 0; i < count; ++i) REQUIRE(read_back(tier, blocks[i]) == second[i]);
}

/// Hundreds of copies of any parts of two blocks without a wait: each fetch finds what the calls before it stored.
void any_order(Tier& tier) {
  unsigned random = 1;
  const auto below = [&](std::size_t n) {
    return static_cast<std::size_t>((random = random * 1664525u + 1013904223u) >> 8) % n;
  };
  constexpr std::size_t size = 60000;
  std::array<TierBlock, 2> blocks;
  std::array<std::vector<std::byte>, 2> model;
  for (std::size_t i = 0; i < 2; ++i) {
    blocks[i] = tier.allocate(size, Purpose::states);
    model[i] = bytes_of(size, 50 + static_cast<unsigned>(i));
    tier.store(blocks[i], 0, model[i]).finish();
  }
  struct Copy {
    std::vector<std::byte> bytes, expected;  // nothing is expected of a store
    Pending pending;
  };
  std::deque<Copy> copies;
  for (int i = 0; i < 400; ++i) {
    const auto which = below(2), offset = below(size), count = 1 + below(std::min<std::size_t>(size - offset, 20000));
    auto& copy = copies.emplace_back();
    const auto part = std::span(model[which]).subspan(offset, count);
    if (below(2)) {
      copy.bytes = bytes_of(count, random);
      std::copy(copy.bytes.begin(), copy.bytes.end(), part.begin());
      copy.pending = tier.store(blocks[which], offset, copy.bytes);
    } else {
      copy.bytes.resize(count);
      copy.expected.assign(part.begin(), part.end());
      copy.pending = tier.fetch(blocks[which], offset, copy.bytes);
    }
  }
  for (auto& copy : copies) copy.pending.finish();
  for (auto& copy : copies)
    if (!copy.expected.empty()) REQUIRE(copy.bytes == copy.expected);
  for (std::size_t i = 0; i < 2; ++i) CHECK(read_back(tier, blocks[i]) == model[i]);
}

/// Sets a value when it is told to, as an operation of another source does.
class Later final : public PendingSource {
 public:
  void join(std::uint64_t) override {
    while (!over) std::this_thread::yield();
    if (fails) throw DataError("the operation before has failed");
  }
  bool done(std::uint64_t) override { return over; }
  bool any_thread() const override { return threads; }
  std::atomic<bool> over{false};
  bool fails = false, threads = true;
};

void chained(Tier& tier) {
  const auto block = tier.allocate(5000, Purpose::states), other = tier.allocate(5000, Purpose::states);
  const auto values = bytes_of(5000, 3);
  std::vector<std::byte> place(5000), copy(5000);
  tier.store(block, 0, values).finish();
  {  // from one block to another through device memory, without a wait
    auto last = tier.store(other, 0, place, tier.fetch(block, 0, place));
    last.finish();
    CHECK(read_back(tier, other) == values);
  }
  const auto before = std::make_shared<Later>();
  const auto held = std::make_shared<int>();
  Pending later(before);
  later.hold(held);
  auto fetched = tier.fetch(block, 0, copy, std::move(later));
  CHECK(held.use_count() == 2);  // held by the fetch
  CHECK_FALSE(fetched.done());
  CHECK(std::all_of(copy.begin(), copy.end(), [](std::byte b) { return b == std::byte{}; }));
  before->over = true;
  fetched.wait();
  CHECK(held.use_count() == 1);
  CHECK(copy == values);

  const auto failing = std::make_shared<Later>();
  failing->over = failing->fails = true;
  auto refused = tier.fetch(block, 0, copy, Pending(failing));
  CHECK_THROWS_WITH_AS(refused.wait(), "the operation before has failed", DataError);
  failing->over = false;
  refused = tier.fetch(block, 0, copy, Pending(failing));
  auto stored = tier.store(block, 0, values);  // waits for the fetch of what it writes over, not for its success
  failing->over = true;
  stored.finish();
  CHECK_THROWS_WITH_AS(refused.finish(), "the operation before has failed", DataError);
  CHECK(read_back(tier, block) == values);  // the tier itself is whole

  const auto ours = std::make_shared<Later>();  // a source that only the rank's thread may ask
  ours->over = true, ours->threads = false;
  tier.fetch(block, 0, copy, Pending(ours)).wait();
  CHECK(tier.fetch(block, 5000, {}, {}).done());
}

void refusals(Tier& tier, Tier& another) {
  const auto block = tier.allocate(100, Purpose::weights), foreign = another.allocate(100, Purpose::weights);
  std::vector<std::byte> place(100);
  const auto name = std::string(name_of(tier.home()));
  CHECK_THROWS_WITH_AS(static_cast<void>(tier.fetch(block, 60, place)),
                       doctest::Contains(("fetch from the tier '" + name +
                                          "' asks for 100 B from byte 60 on of a "
                                          "block of 100 B")
                                             .c_str()),
                       ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(tier.store(foreign, 0, place)),
                       doctest::Contains("names another tier's block"), ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(tier.store({}, 0, place)), doctest::Contains("names no block"), ConfigError);
  CHECK_THROWS_WITH_AS(tier.allocate(100, Purpose::weights, 48), doctest::Contains("multiple of 48 B"), ConfigError);
  CHECK_THROWS_WITH_AS(tier.allocate(100, Purpose::weights, 8192), doctest::Contains("power of two up to 4096"),
                       ConfigError);
}

DiskTierOptions small_requests(const Folder& folder) {
  return {.folder = folder.path, .block_size = 8192, .queue_depth = 3, .thread_count = 2};
}

}  // namespace

TEST_CASE("every tier gives back what it was given: odd parts, many at once, chains") {
  Cpu cpu;
  const Folder folder;
  HostTier<Cpu> host{cpu};
  PinnedTier<Cpu> pinned{cpu};
  DiskTier<Cpu> disk{cpu, small_requests(folder)};
  CHECK(folder.empty());  // the file has no name: nothing is left, however the process ends
  for (Tier* tier : {static_cast<Tier*>(&host), static_cast<Tier*>(&pinned), static_cast<Tier*>(&disk)}) {
    CAPTURE(tier->describe());
    there_and_back(*tier);
    many_in_flight(*tier);
    any_order(*tier);
    chained(*tier);
    refusals(*tier, tier == &host ? static_cast<Tier&>(pinned) : host);
  }
  const auto block = host.allocate(70000, Purpose::states), far = disk.allocate(70000, Purpose::states);
  const auto values = bytes_of(70000, 9);
  std::vector<std::byte> place(70000);
  host.store(block, 0, values).finish();
  disk.store(far, 0, place, host.fetch(block, 0, place)).finish();  // from tier to tier
  CHECK(read_back(disk, far) == values);
}

TEST_CASE("a disk keeps several requests under way, and both directions go on beside what computes") {
  const Reset reset;
  Cpu cpu;
  const Folder folder;
  for (const bool overlap : {true, false}) {
    auto options = small_requests(folder);
    options.overlap_events = overlap;
    DiskTier<Cpu> disk{cpu, options};
    const auto a = disk.allocate(24 * 8192, Purpose::states), b = disk.allocate(24 * 8192, Purpose::states);
    const auto values = bytes_of(a.size(), 5);
    std::vector<std::byte> back(a.size());
    disk.store(a, 0, values).finish();
    faults.delay_us = 2000;
    faults.most_at_once = 0;
    auto up = disk.fetch(a, 0, back), down = disk.store(b, 0, values);
    CHECK_FALSE(up.done());
    auto all = both(std::move(up), std::move(down));
    CHECK_FALSE(all.done());
    all.finish();
    CHECK(faults.most_at_once > 6);  // more than one direction keeps under way
    CHECK(faults.most_at_once <= 12);

    faults.most_at_once = 0;  // small copies, one request each: together only where they may overlap
    std::vector<Pending> small;
    for (std::size_t i = 0; i < 12; ++i)
      small.push_back(disk.fetch(a, i * 8192, std::span(back).subspan(i * 8192, 8192)));
    for (auto& one : small) one.finish();
    CHECK((overlap ? faults.most_at_once > 3 : faults.most_at_once == 1));
    faults.delay_us = 0;
    CHECK(back == values);
    CHECK(read_back(disk, b) == values);
  }
}

TEST_CASE("two operations as one: over when both are, an error of either is its error") {
  CHECK(both({}, {}).done());
  const auto a = std::make_shared<Later>(), b = std::make_shared<Later>();
  const auto held = std::make_shared<int>();
  Pending first(a);
  first.hold(held);
  auto together = both(std::move(first), Pending(b));
  a->over = true;
  CHECK_FALSE(together.done());
  b->over = b->fails = true;
  CHECK(together.done());
  CHECK(held.use_count() == 2);
  CHECK_THROWS_AS(together.finish(), DataError);
  together.wait();  // once is enough
  CHECK(held.use_count() == 1);
}

TEST_CASE("disks that interrupt, move less than was asked, have no direct access or no unnamed files") {
  Cpu cpu;
  const Folder folder;
  for (int kind = 0; kind < 5; ++kind) {
    const Reset reset;
    CAPTURE(kind);
    faults.interrupts = kind == 0;
    faults.short_transfers = kind == 1 || kind == 4;
    faults.refuse_direct = kind == 2 || kind == 4;
    faults.refuse_direct_requests = kind == 3;
    faults.refuse_unnamed = kind == 1;
    faults.reserve_error = kind == 0 ? EOPNOTSUPP : 0;
    DiskTier<Cpu> disk{cpu, small_requests(folder)};
    CHECK(folder.empty());
    there_and_back(disk);
    if (kind >= 2) {
      CHECK_FALSE(disk.direct());
      CHECK(disk.describe() == "disk: " + folder.path +
                                   ", through the page cache (its file system refuses direct access), 6 requests of "
                                   "8.0 KiB under way in each direction");
    }
  }
}

TEST_CASE("a folder in which no file can be made is refused in a sentence") {
  Cpu cpu;
  const Reset reset;
  std::string gone;
  {
    const Folder folder;
    gone = folder.path;
  }
  const auto make = [&](const std::string& path) { DiskTier<Cpu> disk{cpu, {.folder = path}}; };
  CHECK_THROWS_WITH_AS(make(gone),
                       ("the disk tier can make no file in '" + gone +
                        "': No such file or directory; name a folder of a local disk in which this user may write")
                           .c_str(),
                       ConfigError);
  CHECK_THROWS_WITH_AS(make("/proc"), doctest::Contains("can make no file in '/proc'"), ConfigError);
  CHECK_THROWS_WITH_AS(make(""), doctest::Contains("is given no folder"), ConfigError);
  const Folder folder;
  faults.open_error = EROFS;
  CHECK_THROWS_WITH_AS(make(folder.path), doctest::Contains("Read-only file system"), ConfigError);
  faults.open_error = 0;
  CHECK_THROWS_WITH_AS((DiskTier<Cpu>{cpu, {.folder = folder.path, .block_size = 1000}}),
                       doctest::Contains("requests of 1000 B; give a multiple of 4096"), ConfigError);
  CHECK_THROWS_WITH_AS((DiskTier<Cpu>{cpu, {.folder = folder.path, .queue_depth = 0}}),
                       doctest::Contains("queue_depth of 0"), ConfigError);
  CHECK(cpu.pool().at(Home::host).now == 0);  // nothing of what was refused is left in the books

  DiskTier<Cpu> disk{cpu, small_requests(folder)};  // the folder may go while the tier lives
  std::filesystem::remove_all(folder.path);
  there_and_back(disk);
}

TEST_CASE("a store that could not begin leaves old state, which nobody reads") {
  Cpu cpu;
  const Folder folder;
  HostTier<Cpu> host{cpu};
  DiskTier<Cpu> disk{cpu, small_requests(folder)};
  std::vector<std::byte> place(100);
  for (Tier* tier : {static_cast<Tier*>(&host), static_cast<Tier*>(&disk)}) {
    const auto block = tier->allocate(100, Purpose::states);
    tier->store(block, 0, place).finish();
    const auto failing = std::make_shared<Later>();
    failing->over = failing->fails = true;
    static_cast<void>(tier->store(block, 0, place, Pending(failing)));  // and nobody waits for the error
    CHECK_THROWS_WITH_AS(tier->fetch(block, 0, place).wait(), "the operation before has failed", DataError);
  }
}

TEST_CASE("a full disk is found when a block is taken, before anything is written, and the tier goes on") {
  Cpu cpu;
  const Folder folder;
  DiskTier<Cpu> disk{cpu, small_requests(folder)};
  const auto block = disk.allocate(10000, Purpose::states);
  const auto values = bytes_of(10000, 4);
  disk.store(block, 0, values).finish();

  rlimit old{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
  rlimit small = old;
  small.rlim_cur = 1 << 16;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  CHECK_THROWS_WITH_AS(disk.allocate(100000, Purpose::states),
                       ("no room for 102400 B of states on the disk tier in '" + folder.path +
                        "': files of this process may hold 65536 B, and 12288 B are in use; raise the limit "
                        "(ulimit -f), or keep less on disk")
                           .c_str(),
                       MemoryError);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &old) == 0);
  const auto more_than_there_is = std::size_t{1} << 43;  // 8 TiB
  CHECK_THROWS_WITH_AS(disk.allocate(more_than_there_is, Purpose::states),
                       doctest::Contains("no room for 8796093022208"), MemoryError);
  {
    const Reset reset;
    for (const int error : {ENOSPC, EDQUOT}) {
      faults.reserve_error = error;
      faults.releases = 0;
      CHECK_THROWS_WITH_AS(disk.allocate(100000, Purpose::states), doctest::Contains("B of the disk are free, and"),
                           MemoryError);
      CHECK(faults.releases == 1);  // the part that was reserved goes back
    }
    faults.reserve_error = EIO;
    CHECK_THROWS_WITH_AS(disk.allocate(100000, Purpose::states), doctest::Contains("cannot grow by 102400 B"),
                         DataError);
  }
  CHECK(read_back(disk, block) == values);
  CHECK(cpu.pool().at(Home::disk).now == 12288);

  DiskTier<Cpu> limited{cpu, {.folder = folder.path, .limit = 8192}};
  const auto page_of_it = limited.allocate(1, Purpose::weights);
  CHECK_THROWS_WITH_AS(limited.allocate(4097, Purpose::weights),
                       "no room for 4097 B of weights on the tier 'disk': 4096 B are in use of a limit of 8192 B; keep "
                       "less there, or raise the limit",
                       MemoryError);
}

TEST_CASE("an error of a disk is thrown where it is waited for and by every later copy: no torn state is read") {
  Cpu cpu;
  const Folder folder;
  const auto values = bytes_of(50000, 4);
  std::vector<std::byte> back(values.size());
  for (const int error : {EIO, ENOSPC}) {
    const Reset reset;
    DiskTier<Cpu> disk{cpu, small_requests(folder)};
    const auto block = disk.allocate(values.size(), Purpose::states);
    disk.store(block, 0, values).finish();
    faults.write_error = error;
    auto store = disk.store(block, 0, values);
    CHECK_THROWS_AS(disk.fetch(block, 0, back).wait(), Error);  // of what the store should have written
    const auto sentence = "the disk tier in '" + folder.path + "' could not write";
    if (error == EIO)
      CHECK_THROWS_WITH_AS(store.finish(), doctest::Contains("Input/output error; its state is lost"), DataError);
    else
      CHECK_THROWS_WITH_AS(store.finish(), doctest::Contains("B of the disk are free"), MemoryError);
    faults.write_error = 0;
    CHECK_THROWS_WITH_AS(static_cast<void>(disk.fetch(block, 0, back)), doctest::Contains(sentence.c_str()), Error);
    CHECK_THROWS_WITH_AS(disk.allocate(1, Purpose::states), doctest::Contains(sentence.c_str()), Error);
  }
  const Reset reset;
  DiskTier<Cpu> disk{cpu, small_requests(folder)};
  const auto block = disk.allocate(values.size(), Purpose::states);
  faults.read_error = EIO;
  auto fetch = disk.fetch(block, 0, back);
  CHECK_THROWS_WITH_AS(fetch.wait(), doctest::Contains("of its file: Input/output error"), DataError);
  faults.read_error = 0;

  DiskTier<Cpu> forgets{cpu, small_requests(folder)};  // nobody waits for the error: the next copy throws it
  const auto forgotten = forgets.allocate(values.size(), Purpose::states);
  faults.write_error = EIO;
  { Lease{forgets, cpu.pool(), forgotten, {.fetch = false}}.write<std::byte>()[0] = std::byte{1}; }
  CHECK_THROWS_AS(forgets.fetch(forgotten, 0, back).wait(), DataError);
}

TEST_CASE("a tier outlives neither its device nor its use; a block may outlive its tier") {
  const Folder folder;
  TierBlock block;
  std::unique_ptr<HostTier<Cpu>> host;
  std::unique_ptr<DiskTier<Cpu>> disk;
  std::vector<std::byte> place(10);
  {
    Cpu cpu;
    host = std::make_unique<HostTier<Cpu>>(cpu);
    disk = std::make_unique<DiskTier<Cpu>>(cpu, small_requests(folder));
    block = host->allocate(10, Purpose::states);
  }
  CHECK_THROWS_WITH_AS(static_cast<void>(host->fetch(block, 0, place)),
                       "the device of the tier 'host' is gone; a tier must not outlive it", ConfigError);
  CHECK_THROWS_WITH_AS(disk->allocate(10, Purpose::states), doctest::Contains("the device of the tier 'disk' is gone"),
                       ConfigError);
  host.reset();
  CHECK(block.size() == 10);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they need addresses themselves
TEST_CASE("a lane that gets too few threads is refused, and ends the ones that it got") {
  std::string sentence;
  rlimit old{};
  REQUIRE(::getrlimit(RLIMIT_AS, &old) == 0);
  rlimit none = old;
  none.rlim_cur = 1 << 20;  // no stack can be made any more; a few of threads that ended are kept
  REQUIRE(::setrlimit(RLIMIT_AS, &none) == 0);
  try {
    const zeropp::detail::Lane lane(64);
  } catch (const Error& error) {
    sentence = error.what();
  }
  REQUIRE(::setrlimit(RLIMIT_AS, &old) == 0);
  CHECK(sentence.find("a lane of copies gets ") == 0);
  CHECK(sentence.find(" of 64 threads: ") != sentence.npos);
}
#endif

TEST_CASE("memory that the host cannot give is refused before it is used") {
  Cpu cpu;
  HostTier<Cpu> host{cpu};
  PinnedTier<Cpu> pinned{cpu};
  const auto there_is = host_room();
  CHECK(there_is > 1 << 20);
  CHECK(there_is < std::uint64_t{1} << 50);
  CHECK_THROWS_WITH_AS(host.allocate(2 * there_is, Purpose::states), doctest::Contains("on the tier 'host': "),
                       MemoryError);
  CHECK_THROWS_WITH_AS(pinned.allocate(2 * there_is, Purpose::states),
                       doctest::Contains(" B of the host are free, and 0 B are in use; keep less there"), MemoryError);
  CHECK(cpu.pool().at(Home::host).now == 0);
  using zeropp::detail::group_room;  // a limit of 1000 B, 700 in use, of which 250 are page cache
  CHECK(group_room("1000\n", "700\n", "anon 450\ninactive_file 200\nactive_file 50\n") == 550);
  CHECK(group_room("1000\n", "1200\n", "") == 0);
  CHECK(group_room("max\n", "700\n", "") == ~std::uint64_t{0});
  CHECK(group_room("", "", "") == ~std::uint64_t{0});
}

TEST_CASE("room on a disk that was given back is used again") {
  Cpu cpu;
  const Folder folder;
  DiskTier<Cpu> disk{cpu, small_requests(folder)};
  std::vector<TierBlock> blocks;
  const auto take = [&](std::size_t pages) { return disk.allocate(pages * page_size, Purpose::states); };
  for (int i = 0; i < 6; ++i) blocks.push_back(take(4));
  rlimit old{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
  rlimit now = old;
  now.rlim_cur = 24 * page_size;  // the file may not grow any more
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &now) == 0);
  CHECK_THROWS_AS(take(1), MemoryError);
  blocks[1] = {}, blocks[3] = {}, blocks[2] = {};  // next to each other: one gap of 12 pages
  CHECK_THROWS_AS(take(13), MemoryError);
  const auto large = take(11), small = take(1);
  CHECK_THROWS_AS(take(1), MemoryError);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &old) == 0);
  const auto a = bytes_of(large.size(), 1), b = bytes_of(blocks[4].size(), 2), c = bytes_of(small.size(), 3);
  disk.store(large, 0, a).finish(), disk.store(blocks[4], 0, b).finish(), disk.store(small, 0, c).finish();
  CHECK(read_back(disk, large) == a);
  CHECK(read_back(disk, blocks[4]) == b);
  CHECK(read_back(disk, small) == c);
}

TEST_CASE("a lease fetches when it begins, stores what was written when it ends, and holds its memory until then") {
  Cpu cpu;
  const Folder folder;
  DiskTier<Cpu> disk{cpu, small_requests(folder)};
  const auto block = disk.allocate(3 * 40000, Purpose::states);
  auto values = bytes_of(block.size(), 6);
  disk.store(block, 0, values).finish();
  {
    Lease lease(disk, cpu.pool(), block);
    const auto seen = lease.read<std::byte>();
    CHECK(std::equal(seen.begin(), seen.end(), values.begin(), values.end()));
  }
  {
    Lease moved_from(disk, cpu.pool(), block, {.offset = 40000, .bytes = 40000});
    Lease lease(std::move(moved_from));
    for (auto& b : lease.write<std::byte>()) b ^= std::byte{0xff};
    CHECK(cpu.pool().allocated() == 40000);
    auto back = lease.end();
    back.wait();
    CHECK(cpu.pool().allocated() == 0);
    CHECK_FALSE(lease.end().under_way());
  }
  for (std::size_t i = 40000; i < 80000; ++i) values[i] ^= std::byte{0xff};
  CHECK(read_back(disk, block) == values);
  { Lease{disk, cpu.pool(), block, {.offset = 7, .bytes = 9, .fetch = false}}.write<std::byte>()[0] = std::byte{1}; }
  CHECK(read_back(disk, block)[7] == std::byte{1});
  CHECK_THROWS_WITH_AS((Lease{disk, cpu.pool(), block, {.offset = 7, .bytes = block.size()}}),
                       doctest::Contains("a lease asks for 120000 B from byte 7 on of a block of 120000 B"),
                       ConfigError);
}

namespace {

/// A step that keeps states on tiers and leases them, two at a time.
template <class D>
std::array<HomeBytes, 4> step(D& device, const std::string& folder) {
  HostTier<D> host{device};
  PinnedTier<D> pinned{device};
  DiskTier<D> disk{device, {.folder = folder, .block_size = 8192, .queue_depth = 4}};
  const auto weights = device.pool().take_persistent(5000, Purpose::weights);
  std::vector<TierBlock> blocks;
  for (Tier* tier : {static_cast<Tier*>(&host), static_cast<Tier*>(&pinned), static_cast<Tier*>(&disk)})
    for (const std::size_t bytes : {5000, 123456}) blocks.push_back(tier->allocate(bytes, Purpose::states));
  { const auto for_a_while = disk.allocate(1 << 20, Purpose::gradients); }
  for (int run = 0; run < 3; ++run) {
    Pool::Program program(device.pool(), "step");
    Pending last;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      Tier& tier = i < 2 ? static_cast<Tier&>(host) : i < 4 ? static_cast<Tier&>(pinned) : disk;
      Lease lease(tier, device.pool(), blocks[i]);
      static_cast<void>(lease.template write<std::byte>());
      last = lease.end();
    }
    last.wait();
    program.finish();
  }
  std::array<HomeBytes, 4> homes;
  for (std::size_t i = 0; i < homes.size(); ++i) homes[i] = device.pool().at(static_cast<Home>(i));
  return homes;
}

}  // namespace

TEST_CASE("plan = use in every home, and nothing is left when tiers and blocks are gone") {
  const Folder folder;
  Cpu cpu;
  Dry dry;
  const auto used = step(cpu, folder.path), planned = step(dry, "/a/folder/that/need/not/exist");
  for (std::size_t i = 0; i < used.size(); ++i) {
    CAPTURE(home_names[i]);
    CHECK(planned[i].now == used[i].now);
    CHECK(planned[i].peak == used[i].peak);
    CHECK(planned[i].by == used[i].by);
  }
  const std::size_t states = 8192 + 126976;  // 5000 and 123456 in whole pages
  CHECK(used[1].by[Purpose::states] == states);
  CHECK(used[1].by[Purpose::buffers] == 2 * 4 * 8192);  // of the disk's requests
  CHECK(used[2].now == states);
  CHECK(used[3].now == states);
  CHECK(used[3].peak == states + (1 << 20));
  CHECK(used[0].peak >= 5000 + 5000 + 123456);  // one is under way to its tier while the next one comes
  for (const auto home : {Home::device, Home::host, Home::pinned, Home::disk}) {
    CHECK(cpu.pool().at(home).now == (home == Home::device ? cpu.pool().arena() : 0));
    CHECK(dry.pool().at(home).now == cpu.pool().at(home).now);
  }
}
