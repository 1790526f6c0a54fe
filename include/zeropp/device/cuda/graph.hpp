// SPDX-License-Identifier: Apache-2.0
// A CUDA graph: work that was enqueued once, kept, and enqueued again as a whole, with the numbers and addresses that
// it was given then.
#pragma once

#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <zeropp/device/cuda/runtime.hpp>

namespace zeropp {

/// The objects that belong to captured work: the end of its runs, and the memory that they write.
struct CudaCapture {
  CudaEvent ended;  ///< recorded after each run
  std::vector<std::shared_ptr<void>> owned;
};

class CudaGraph {
 public:
  CudaGraph() = default;
  CudaGraph(CudaGraph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  CudaGraph& operator=(CudaGraph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~CudaGraph() {
    if (graph_) cudaGraphExecDestroy(graph_);
  }

  explicit operator bool() const { return graph_ != nullptr; }

  /// The graph of the work that `body` enqueues on `stream`; none of it runs. Throws the errors of `body`, or CudaError
  /// where `body` does what can't be captured: waits for the GPU, above all.
  template <class Body>
  static CudaGraph of(cudaStream_t stream, const Body& body) {
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    std::exception_ptr error;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
    cudaGraph_t captured = nullptr;
    const auto ended = cudaStreamEndCapture(stream, &captured);
    if (error) {
      if (captured) cudaGraphDestroy(captured);
      static_cast<void>(cudaGetLastError());
      std::rethrow_exception(error);
    }
    cuda_check(ended, "cudaStreamEndCapture");
    CudaGraph graph;
    const auto made = cudaGraphInstantiate(&graph.graph_, captured, 0);
    cudaGraphDestroy(captured);
    cuda_check(made, "cudaGraphInstantiate");
    return graph;
  }

  void launch(cudaStream_t stream) const { cuda_check(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace zeropp
