// SPDX-License-Identifier: Apache-2.0
// An NVIDIA GPU as a device. Operations are enqueued on its compute stream and return at once; the host waits in
// `download`, `synchronize`, and where a Loss or a norm is read. One rank's thread uses it; several ranks may share one
// GPU, each with a device of its own.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeindex>
#include <utility>
#include <vector>

#include <zeropp/device/cuda/faults.hpp>
#include <zeropp/device/cuda/graph.hpp>
#include <zeropp/device/cuda/profile.hpp>
#include <zeropp/device/cuda/range.hpp>
#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp {

/// Plain blocks of the current GPU's memory.
class CudaMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    void* block = nullptr;
    const auto result = cudaMalloc(&block, bytes);
    if (result == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      return nullptr;
    }
    cuda_check(result, "cudaMalloc");
    if (checked) {  // before any stream uses the block
      cuda_check(cudaMemset(block, 0xff, bytes), "cudaMemset");
      cuda_check(cudaStreamSynchronize(nullptr), "cudaMemset");
    }
    return static_cast<std::byte*>(block);
  }
  void deallocate(std::byte* block, std::size_t) noexcept override { static_cast<void>(cudaFree(block)); }
};

/// The properties by which kernels choose their sizes.
struct CudaProperties {
  std::string name = "NVIDIA H100";  ///< the defaults are what a plan without a GPU assumes
  int multiprocessors = 132;
  int compute_capability = 90;  ///< 10 · major + minor
  std::size_t memory = std::size_t{80} << 30, l2_cache = std::size_t{50} << 20;

  /// The properties of the first GPU, where there is one.
  static CudaProperties here() { return cuda_devices() > 0 ? of(0) : CudaProperties{}; }
  static CudaProperties of(int ordinal) {
    cudaDeviceProp p{};
    cuda_check(cudaGetDeviceProperties(&p, ordinal), "cudaGetDeviceProperties");
    return {p.name, p.multiProcessorCount, 10 * p.major + p.minor, p.totalGlobalMem,
            static_cast<std::size_t>(p.l2CacheSize)};
  }
};

struct CudaOptions {
  int ordinal = 0;               ///< which GPU
  std::size_t memory_limit = 0;  ///< bytes; 0: what the GPU gives
  bool profile = false;          ///< time every operation; see Cuda::profile()
  bool shared = false;           ///< other ranks compute on this GPU too: then they don't exchange by NCCL
};

namespace detail {

/// One object of each type that kernels keep with a device: a library's handle, a cache of chosen algorithms.
class Companions {
 public:
  template <class T, class D>
  T& of(D& device) {
    auto& place = all_[std::type_index(typeid(T))];
    if (!place) place = std::make_shared<T>(device);
    return *static_cast<T*>(place.get());
  }

 private:
  std::map<std::type_index, std::shared_ptr<void>> all_;
};

}  // namespace detail

class Cuda {
 public:
  static constexpr bool dry = false, cuda = true;
  using Range = CudaRange;  ///< the engine opens one for each layer

  explicit Cuda(CudaOptions options = {})
      : ordinal_(selected(options.ordinal)),
        properties_(CudaProperties::of(options.ordinal)),
        profiles_(options.profile),
        shared_(options.shared),
        pool_(std::make_unique<CudaMemory>(), {.limit = options.memory_limit}) {}
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda() { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  Pool& pool() { return pool_; }
  int ordinal() const { return ordinal_; }
  bool shared() const { return shared_; }
  const CudaProperties& properties() const { return properties_; }
  /// Where computation is enqueued, in order.
  cudaStream_t stream() const { return stream_.get(); }

  /// body(stream) enqueues the operation. Throws CudaError, which names it, where it could not be started.
  template <class Body>
  void run(const Cost& cost, Body&& body) {
    static_assert(std::is_invocable_v<Body, cudaStream_t>,
                  "zeropp: this operation has no kernel for the device Cuda here. Kernels are compiled by nvcc: "
                  "instantiate engines on Cuda in a .cu file of a target that links zeropp::cuda");
    if (profiles_) profile_.begin(cost, stream_.get());
    body(stream_.get());
    if (profiles_) profile_.end(stream_.get());
    if (const auto result = cudaGetLastError(); result != cudaSuccess) cuda_check(result, text("kernel ", cost.name));
  }

  /// Copies from the host; `from`, unless it is page-locked, may be changed when it returns.
  void upload(void* to, const void* from, std::size_t bytes) {
    expect_no_capture("copying to the GPU");
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get()), "copying to the GPU");
  }
  /// Copies to the host, after all that is enqueued; waits.
  void download(void* to, const void* from, std::size_t bytes) {
    expect_no_capture("copying from the GPU");
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_.get()), "copying from the GPU");
    synchronize();
  }
  /// Waits for all that is enqueued; throws what went wrong in it, CudaError or DataError.
  void synchronize() {
    expect_no_capture("waiting for the GPU");
    stream_.wait();
    check();
  }
  /// Throws what has been found wrong so far: in data, once, and by those who asked to be called. Waits for nothing.
  void check() {
    check_faults();
    for (const auto& other : checks_) other();
  }

  /// While it lives, what is enqueued is captured, to run later, again and again.
  class Capturing {
   public:
    Capturing(Cuda& device, std::shared_ptr<CudaCapture> into) : device_(device) { device_.capture_ = std::move(into); }
    Capturing(const Capturing&) = delete;
    ~Capturing() { device_.capture_.reset(); }

   private:
    Cuda& device_;
  };
  /// The capture under way; or null.
  const std::shared_ptr<CudaCapture>& capture() const { return capture_; }

  /// `check` is called whenever the host has waited, to throw what others have found wrong meanwhile.
  void when_waited(std::function<void()> check) { checks_.push_back(std::move(check)); }

  /// Mapped host memory where kernels note what they find wrong.
  CudaFaults* faults() const { return faults_.get(); }

  /// The one T of this device, made by T(device) at first use.
  template <class T>
  T& companion() {
    return companions_.of<T>(*this);
  }

  /// Times of operations, and of communication; empty unless CudaOptions asked for them.
  CudaProfile& profile() { return profile_; }
  bool profiles() const { return profiles_; }

 private:
  static int selected(int ordinal) {
    const int found = cuda_devices();
    if (ordinal < 0 || ordinal >= found)
      throw CudaError(
          text("GPU ", ordinal, " is asked for, this machine has ", found, "; use another device, or --backend cpu"));
    cuda_check(cudaSetDevice(ordinal), "cudaSetDevice");
    return ordinal;
  }
  void check_faults() {
    if (faults_->kind == CudaFaults::none) return;
    const CudaFaults found = *faults_;
    faults_->kind = CudaFaults::none;
    throw error_of(found);
  }
  void expect_no_capture(std::string_view what) const {
    if (capture_)
      throw CudaError(text(what,
                           " is no part of a graph, and this step is captured as one: leave that to the layer's "
                           "kernels, or train without ShardedOptions::graph"));
  }

  int ordinal_;
  CudaProperties properties_;
  bool profiles_, shared_;
  CudaProfile profile_;
  CudaStream stream_;
  Pinned<CudaFaults> faults_;
  std::vector<std::function<void()>> checks_;
  std::shared_ptr<CudaCapture> capture_;
  Pool pool_;
  detail::Companions companions_;  // gone before the pool that they took memory from
};
static_assert(Device<Cuda>);

/// The dry device that asks for the memory that Cuda asks for: plans of GPU runs come from it, on machines without one,
/// where they are for an H100 unless `properties` say otherwise.
class DryCuda {
 public:
  static constexpr bool dry = true, cuda = true;
  explicit DryCuda(PoolOptions options = {}, CudaProperties properties = CudaProperties::here())
      : properties_(std::move(properties)), pool_(std::make_unique<DryMemory>(), options) {}

  Pool& pool() { return pool_; }
  const CudaProperties& properties() const { return properties_; }

  template <class Body>
  void run(const Cost& cost, Body&&) {
    flops_ += cost.flops;
    bytes_ += cost.bytes;
    ++kernels_;
  }
  void upload(void*, const void*, std::size_t) {}
  void download(void*, const void*, std::size_t) {}
  void synchronize() {}

  template <class T>
  T& companion() {
    return companions_.of<T>(*this);
  }

  double flops() const { return flops_; }
  double bytes() const { return bytes_; }
  std::int64_t kernels() const { return kernels_; }

 private:
  CudaProperties properties_;
  Pool pool_;
  detail::Companions companions_;
  double flops_ = 0, bytes_ = 0;
  std::int64_t kernels_ = 0;
};
static_assert(Device<DryCuda>);

/// A device whose operations are CUDA kernels, or the dry one that plans for it.
template <class D>
concept CudaDevice = Device<D> && requires {
  requires D::cuda;
};

}  // namespace zeropp
