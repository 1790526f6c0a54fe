// SPDX-License-Identifier: Apache-2.0
// The head of a language model and its cross entropy on GPUs: logits exist for a tile of rows at a time, in the type of
// the activations, and become their own gradients. The loss is handed back before it is known.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/kernels/cuda/cross_entropy_kernels.hpp>
#include <zeropp/kernels/cuda/matmul.hpp>
#include <zeropp/kernels/cuda/pending_loss.hpp>
#include <zeropp/kernels/cuda/total_loss.hpp>

namespace zeropp::kernels {

namespace detail {

/// Most bytes of logits in memory at a time.
inline constexpr std::int64_t cuda_logits_bytes = std::int64_t{5} << 28;

/// Rows of a tile of logits: at most 1.25 GiB of them and a quarter of all (128 where that is less). Within that, what
/// makes the three products of all tiles quickest: their grids of 128 x 256 tiles should fill whole waves of
/// multiprocessors, and each tile of rows reads and writes the gradient of the table once more, whose bytes cost as
/// much as 650 products each (H100: 3 TB/s, 5.3 TFLOP/s and 132 multiprocessors).
inline std::int64_t head_rows(std::int64_t n, std::int64_t vocabulary, std::int64_t width, std::size_t element,
                              int multiprocessors) {
  constexpr std::int64_t unit = 128;
  const auto bytes = std::max<std::int64_t>(1, vocabulary * static_cast<std::int64_t>(element));
  const auto most = std::max(unit, std::min(cuda_logits_bytes / bytes, n / 4) / unit * unit);
  if (n <= most) return std::max<std::int64_t>(n, 1);
  const auto waves = [&](std::int64_t rows, std::int64_t columns) {
    return static_cast<double>(ceil_div(ceil_div(rows, 128) * ceil_div(columns, 256), multiprocessors));
  };
  const auto cost = [&](std::int64_t rows) {
    const auto v = static_cast<double>(vocabulary), w = static_cast<double>(width), r = static_cast<double>(rows);
    return waves(rows, vocabulary) * w + waves(rows, width) * v + waves(vocabulary, width) * r + 2.15e-4 * v * w;
  };
  std::int64_t best = most;
  double least = std::numeric_limits<double>::infinity();
  for (auto rows = most; rows >= unit && rows * 4 > most; rows -= unit) {
    const auto last = n % rows;
    const double all = static_cast<double>(n / rows) * cost(rows) + (last ? cost(last) : 0);
    if (all < 0.995 * least) {
      least = all;
      best = rows;
    }
  }
  return best;
}

/// Elements between rows of logits, so that each begins on 128 bytes.
inline std::int64_t logits_stride(std::int64_t vocabulary, std::size_t element) {
  return round_up(vocabulary, static_cast<std::int64_t>(128 / element));
}

template <CudaDevice D>
void check_labels(D& device, std::span<const std::int32_t> labels, std::int64_t used) {
  const auto n = static_cast<std::int64_t>(labels.size());
  if (n == 0) return;
  device.run({.name = "check labels", .bytes = static_cast<double>(labels.size_bytes())}, [&](cudaStream_t stream) {
    if constexpr (!D::dry) launch_total_loss(nullptr, labels.data(), n, used, nullptr, device.faults(), stream);
  });
}

/// Enqueues the sum of all losses.
template <CudaDevice D>
PendingLoss total(D& device, const double* losses, std::span<const std::int32_t> labels, std::int64_t used) {
  PendingLoss result;
  device.run({.name = "sum of losses", .bytes = 12.0 * static_cast<double>(labels.size())}, [&](cudaStream_t stream) {
    if constexpr (!D::dry) {
      auto slot = device.template companion<LossSlots>().take();
      launch_total_loss(losses, labels.data(), static_cast<std::int64_t>(labels.size()), used, slot->report.get(),
                        device.faults(), stream);
      result = LossSlots::written(device, slot);
    }
  });
  return result;
}

/// dx = dlogits · w for rows from `first` on, and dw += dlogitsᵀ · x; the first rows may overwrite that.
template <CudaDevice D, class X, class W, class G>
auto tile_to_gradients(D& device, const X* x, const W* w, X* dx, G* dw, std::int64_t width, std::int64_t vocabulary,
                       Into into) {
  return [=, &device](std::int64_t first, MatrixView<const X> dlogits) {
    matmul(device, dlogits, row_major(w, vocabulary, width), row_major(dx + first * width, dlogits.rows, width));
    matmul(device, dlogits.t(), row_major(x + first * width, dlogits.rows, width), row_major(dw, vocabulary, width),
           first == 0 ? into : Into::add);
  };
}

/// Calls then(first row, logits or their gradients [rows, vocabulary]) for each tile after its losses are enqueued.
template <bool Gradient, CudaDevice D, class X, class W, class Then>
PendingLoss for_each_tile(D& device, const X* x, const W* w, std::span<const std::int32_t> labels, std::int64_t width,
                          std::int64_t vocabulary, std::int64_t used, double scale, Then then) {
  const auto n = static_cast<std::int64_t>(labels.size()), stride = logits_stride(vocabulary, sizeof(X)),
             block = head_rows(n, vocabulary, width, sizeof(X), device.properties().multiprocessors);
  Tensor<X, 2> logits(device.pool(), {block, stride}, Purpose::buffers);
  Tensor<double, 1> losses(device.pool(), {n}, Purpose::buffers);
  for (std::int64_t first = 0; first < n; first += block) {
    const auto rows = std::min(block, n - first);
    const MatrixView<X> tile{logits.data(), rows, vocabulary, stride};
    matmul(device, row_major(x + first * width, rows, width), row_major(w, vocabulary, width).t(), tile);
    const auto count = static_cast<double>(rows * vocabulary);
    device.run({.name = "cross entropy", .flops = 6 * count, .bytes = (Gradient ? 2 : 1) * count * sizeof(X)},
               [&](cudaStream_t stream) {
                 launch_cross_entropy<Gradient>(LogitRows<X>{logits.data(), rows, stride, used, labels.data() + first},
                                                losses.data() + first, scale, stream);
               });
    then(first, constant(tile));
  }
  return total(device, losses.data(), labels, used);
}

}  // namespace detail

/// As the host's. Waits.
template <CudaDevice D>
std::int64_t count_labels(D& device, std::span<const std::int32_t> labels) {
  return detail::total(device, nullptr, labels, std::numeric_limits<std::int64_t>::max()).wait().count;
}

/// As the host's, with labels in the GPU's memory; returns at once. A label that is not below `used` counts as none,
/// and is thrown as DataError where the host waits.
template <CudaDevice D, class X, class W>
PendingLoss linear_cross_entropy(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                                 std::int64_t width, std::int64_t vocabulary, std::int64_t used) {
  return detail::for_each_tile<false>(device, x, w, labels, width, vocabulary, used, 0, [](auto...) {});
}

/// Loss and gradients in one sweep: overwrites dx [n, width] and adds to dw, or
/// overwrites it (not where there are no labels), both of scale · Σ losses.
template <CudaDevice D, class X, class W, class G>
PendingLoss linear_cross_entropy_backward(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                                          X* dx, G* dw, std::int64_t width, std::int64_t vocabulary, std::int64_t used,
                                          double scale, Into into = Into::add) {
  return detail::for_each_tile<true>(device, x, w, labels, width, vocabulary, used, scale,
                                     detail::tile_to_gradients(device, x, w, dx, dw, width, vocabulary, into));
}

/// out [rows, used], in the host's memory, = the logits of some rows of x [n, width]. Waits.
template <CudaDevice D, class X, class W>
void linear_logits(D& device, const X* x, const W* w, std::span<const std::int64_t> rows, std::span<float> out,
                   std::int64_t width, std::int64_t vocabulary, std::int64_t used) {
  const auto count = static_cast<std::int64_t>(rows.size()), stride = detail::logits_stride(vocabulary, sizeof(X));
  if (count == 0) return;
  Tensor<X, 2> logits(device.pool(), {count, stride}, Purpose::buffers);
  for (std::int64_t i = 0; i < count; ++i)
    matmul(device, row_major(x + rows[static_cast<std::size_t>(i)] * width, 1, width),
           row_major(w, vocabulary, width).t(), MatrixView<X>{logits.data() + i * stride, 1, vocabulary, stride});
  if constexpr (!D::dry) {
    std::vector<X> host(static_cast<std::size_t>(count * stride));
    device.download(host.data(), logits.data(), host.size() * sizeof(X));
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t v = 0; v < used; ++v)
        out[static_cast<std::size_t>(i * used + v)] =
            static_cast<float>(static_cast<compute_t<X>>(host[static_cast<std::size_t>(i * stride + v)]));
  }
}

}  // namespace zeropp::kernels
