// SPDX-License-Identifier: Apache-2.0
// The tier of a disk: one file without a name in a folder of a local disk, and several requests under way in each
// direction. The options are named as in DeepSpeed's section `aio`, but for single_submit: each request is a call.
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include <zeropp/base/format.hpp>
#include <zeropp/device/tiers/disk_file.hpp>
#include <zeropp/device/tiers/staged_tier.hpp>

namespace zeropp {

struct DiskTierOptions {
  std::string folder;                             ///< of a local disk; nothing stays in it
  std::size_t limit = 0;                          ///< bytes; 0: what the disk gives
  std::size_t block_size = std::size_t{1} << 20;  ///< bytes of a request
  int queue_depth = 8;                            ///< requests under way for each of `thread_count`
  int thread_count = 1;                           ///< times queue_depth: requests under way in each direction
  bool overlap_events = true;                     ///< requests of a copy may begin while the copy before is under way
};

template <class D>
class DiskTier final : public detail::StagedTier<D> {
 public:
  /// Throws ConfigError where no file can be made in the folder.
  explicit DiskTier(D& device, DiskTierOptions options)
      : detail::StagedTier<D>(device, Home::disk, file(options), options.limit, staging(options)),
        options_(std::move(options)) {}

  /// Whether requests go past the page cache. Where the file system refuses that, they do not, and describe() says so.
  bool direct() const {
    if constexpr (D::dry)
      return true;
    else
      return static_cast<const detail::DiskFile&>(*this->core()->memory).direct();
  }
  std::string describe() const override {
    return text("disk: ", options_.folder,
                direct() ? ", direct access, " : ", through the page cache (its file system refuses direct access), ",
                requests(options_), " requests of ", bytes_text(static_cast<double>(options_.block_size)),
                " under way in each direction");
  }

 private:
  static int requests(const DiskTierOptions& options) { return options.queue_depth * options.thread_count; }
  static detail::StagingOptions staging(const DiskTierOptions& options) {
    if (options.queue_depth < 1 || options.thread_count < 1 || options.queue_depth > 1024 ||
        options.thread_count > 1024)
      throw ConfigError(text("the disk tier is to have a queue_depth of ", options.queue_depth,
                             " and a thread_count of ", options.thread_count, "; give 1 to 1024"));
    return {.block_size = options.block_size, .requests = requests(options), .overlap = options.overlap_events};
  }
  static std::shared_ptr<detail::TierMemory> file(const DiskTierOptions& options) {
    if (options.folder.empty())
      throw ConfigError("the disk tier is given no folder; name one of a local disk (DiskTierOptions::folder)");
    if constexpr (D::dry)
      return std::make_shared<detail::AddressedMemory>(Home::disk, true, std::make_unique<DryMemory>());
    else
      return std::make_shared<detail::DiskFile>(options.folder);
  }

  DiskTierOptions options_;
};

}  // namespace zeropp
