// SPDX-License-Identifier: Apache-2.0
// Which kernels run attention on a GPU: our own by warpgroups on Hopper, cuDNN's where a program has them, our own
// tiles on other tensor cores, or the plain ones. Chosen here and nowhere else, from shapes and places, the same on
// the device Cuda and on the dry one, which takes it that programs for compute capability 9.0 are compiled for
// sm_90a.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/attention_tiles.hpp>

namespace zeropp::kernels {

enum class AttentionBackend {
  best,        ///< the first of the following that can do it; forward with heads of 64 and less than 2048 positions
               ///< cuDNN's before ours (docs/performance.md)
  warpgroups,  ///< bf16 or f16, heads of 64 or 128, on GPUs of compute capability 9.0 in a program compiled for sm_90a
  cudnn,       ///< bf16 or f16, 2 positions or more, heads of a multiple of 8 up to 128, in a program that links
               ///< zeropp::cudnn
  tiles,       ///< bf16 or f16, heads of 64 or 128
  plain        ///< everything
};

/// Heads as they lie: HeadsView of whatever type the call says. Our own kernels read how far apart sequences lie.
struct HeadsIn {
  const void* data = nullptr;
  std::int64_t stride = 0, sequence = 0;
};
struct HeadsOut {
  void* data = nullptr;
  std::int64_t stride = 0, sequence = 0;
};

/// One call in bf16 or f16, forward or backward: what is null is not part of it. `part`: over keys that need not be
/// those of the queries, with results in float; only our own kernels do that.
struct AttentionCall {
  AttentionShape s;
  DType type = DType::bf16;  ///< of all heads
  bool part = false;
  HeadsIn q{}, k{}, v{};
  HeadsOut out{};               ///< forward
  float* lse = nullptr;         ///< [B, H, T]; forward
  HeadsIn saved_out{}, dout{};  ///< backward
  const float* saved_lse = nullptr;
  HeadsOut dq{}, dk{}, dv{};
  bool deterministic = true;

  bool backward() const { return dout.data != nullptr; }
};

/// Attention from a library. Its one implementation is cudnn_attention.hpp, in a source file of its own.
class AttentionProvider {
 public:
  virtual ~AttentionProvider() = default;
  /// Bytes of workspace for calls like this one, or none and a sentence in `why`: it has no kernel for it. Slow the
  /// first time for a shape.
  virtual std::optional<std::size_t> prepare(const AttentionCall&, std::string& why) = 0;
  /// Enqueues a call that was prepared. Throws CudaError.
  virtual void run(const AttentionCall&, void* workspace, cudaStream_t) = 0;
};

/// Set, before main, by the source file that includes cudnn_attention.hpp; null in programs without one.
inline std::unique_ptr<AttentionProvider> (*make_attention_provider)() = nullptr;

namespace detail {
/// Whether this program holds the kernels by warpgroups for the current GPU. Defined where nvcc compiles, launch.hpp.
template <class D>
bool warpgroups_compiled();
}  // namespace detail

struct CudaAttentionOptions {
  AttentionBackend backend = AttentionBackend::best;
  /// Backward by cuDNN with the same bits every time. It keeps the gradients of all scores for that, 2·B·H·T² bytes
  /// for the time of the call (Hopper, cuDNN 9); the others are deterministic in any case.
  bool deterministic = true;
};

/// Kept by the device: `device.companion<CudaAttention>().options.backend = AttentionBackend::tiles`.
class CudaAttention {
 public:
  template <CudaDevice D>
  explicit CudaAttention(D& device)
      : dry_(D::dry), capability_(device.properties().compute_capability), warpgroups_(capability_ == 90) {
    if constexpr (!D::dry)
      warpgroups_ = warpgroups_ && detail::warpgroups_compiled<D>();  // a plan takes it for granted
  }

  CudaAttentionOptions options;

  /// The backend that runs this call. Throws ConfigError where the backend that was asked for cannot.
  AttentionBackend choose(const AttentionCall& call) {
    std::string why;
    switch (call.part && options.backend == AttentionBackend::cudnn ? AttentionBackend::best : options.backend) {
      case AttentionBackend::plain: return AttentionBackend::plain;
      case AttentionBackend::warpgroups:
        if (capability_ != 90)
          throw ConfigError(
              text("attention by warpgroups was asked for; it takes a GPU of compute capability 9.0, found ",
                   capability_ / 10, ".", capability_ % 10, "; use best"));
        if (!warpgroups_)
          throw ConfigError(
              "attention by warpgroups was asked for, on a GPU that can run it, in a program that is not compiled for "
              "sm_90a; set CMAKE_CUDA_ARCHITECTURES=90a, or use best");
        [[fallthrough]];
      case AttentionBackend::tiles:
        if (!tiles_can(call, why))
          throw ConfigError(text("attention by tiles or warpgroups was asked for; it takes ", why, "; use best"));
        return options.backend;
      case AttentionBackend::cudnn:
        if (!make_attention_provider)
          throw ConfigError(
              "attention by cuDNN was asked for, and this program has no cuDNN: link zeropp::cudnn and "
              "include zeropp/kernels/cuda/cudnn_attention.hpp in one source file, or use best");
        if (!cudnn_can(call, why)) throw ConfigError(text("attention by cuDNN was asked for; ", why, "; use best"));
        return AttentionBackend::cudnn;
      case AttentionBackend::best: break;
    }
    const bool tiles = tiles_can(call, why), ours = warpgroups_ && tiles;
    const bool short_forward = !call.backward() && call.s.head_size == 64 && call.s.sequence < 2048;
    refusal_.clear();
    if (!call.part && make_attention_provider && (!ours || short_forward) && cudnn_can(call, refusal_))
      return AttentionBackend::cudnn;
    if (ours) return AttentionBackend::warpgroups;
    return tiles ? AttentionBackend::tiles : AttentionBackend::plain;
  }

  /// The answer of cuDNN when `best` asked it last; empty where cuDNN agreed, or was not asked.
  const std::string& refusal() const { return refusal_; }

  /// Bytes of workspace for a call by cuDNN, from the shape alone, so that a plan asks for as much as a run; more where
  /// cuDNN on this GPU wants more. Backward: rowsum(dO ∘ O), the gradients of all scores in 16 bits (deterministic) or
  /// dq in float, and dk and dv of every query head where they share keys.
  std::size_t workspace(const AttentionCall& call) {
    const auto& s = call.s;
    std::int64_t bytes = 1 << 20;
    if (call.backward()) {
      const auto heads = s.batch * s.heads, element = heads * s.sequence * s.head_size;
      bytes += heads * s.sequence * 4;
      bytes += call.deterministic ? heads * round_up(s.sequence, 64) * round_up(s.sequence, 128) * 2 : element * 4;
      if (s.heads != s.kv_heads) bytes += 2 * element * 4;
    }
    const auto bound = static_cast<std::size_t>(bytes);
    std::string why;
    return dry_ ? bound : std::max(bound, provider().prepare(call, why).value_or(0));
  }

  AttentionProvider& provider() {
    if (!provider_) provider_ = make_attention_provider();
    return *provider_;
  }

 private:
  /// Rows of all heads of all sequences begin at multiples of 16 bytes.
  static bool aligned(const AttentionCall& c) {
    bool all = c.s.head_size % 8 == 0;
    const auto check = [&](auto view) {
      all = all && view.stride % 8 == 0 && view.sequence % 8 == 0 &&
            reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
    };
    check(c.q), check(c.k), check(c.v);
    if (!c.backward()) check(c.out);
    if (c.backward()) check(c.saved_out), check(c.dout), check(c.dq), check(c.dk), check(c.dv);
    return all;
  }
  /// Whether tiles and warpgroups take this call; `why` says which of their conditions it misses.
  static bool tiles_can(const AttentionCall& call, std::string& why) {
    const auto positions = call.s.sequence + call.s.key_count();
    if (call.s.head_size != 64 && call.s.head_size != 128)
      why = text("heads of 64 or 128 elements, found ", call.s.head_size);
    else if (!aligned(call))
      why = "heads whose rows begin at multiples of 16 bytes, found some that do not";
    else if (positions >= 1 << 30)  // their kernels count in int
      why = text("less than 2^30 queries and keys of a sequence, found ", positions);
    return why.empty();
  }
  bool cudnn_can(const AttentionCall& call, std::string& why) {
    if (call.s.head_size > 128 || call.s.sequence < 2 || !aligned(call)) {
      why = text("it takes 2 positions or more and heads of a multiple of 8 up to 128 elements whose rows begin at ",
                 "multiples of 16 bytes, found ", call.s.sequence, " positions and ", call.s.head_size, " elements");
      return false;
    }
    return dry_ || provider().prepare(call, why);
  }

  bool dry_;
  int capability_;
  bool warpgroups_;
  std::unique_ptr<AttentionProvider> provider_;
  std::string refusal_;
};

}  // namespace zeropp::kernels
