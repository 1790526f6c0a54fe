// SPDX-License-Identifier: Apache-2.0
// Ranges of a rank's thread in the timelines of NVIDIA's tools (NVTX 3): what runs from here to there is layer h.3.
#pragma once

#include <nvtx3/nvToolsExt.h>

#include <string>

namespace zeropp {

class CudaRange {
 public:
  /// Whether a tool watches this process; without one ranges are not worth a name.
  static bool watched() {
    static const bool found = nvtxDomainCreateA("zeropp") != nullptr;  // null without a tool
    return found;
  }

  explicit CudaRange(const std::string& name) : open_(!name.empty() && watched()) {
    if (open_) nvtxRangePushA(name.c_str());
  }
  CudaRange(const CudaRange&) = delete;
  CudaRange& operator=(const CudaRange&) = delete;
  ~CudaRange() {
    if (open_) nvtxRangePop();
  }

 private:
  bool open_;
};

}  // namespace zeropp
