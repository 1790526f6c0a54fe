// SPDX-License-Identifier: Apache-2.0
// The simulator against published measurements: the tables of docs/simulate.md. Figures in the columns "published" are
// the papers'; the rest comes from the engine on the dry device.
#include <cmath>
#include <cstdio>

#include "../../examples/mini_gpt/simulate.hpp"
#include "../timed_layer.hpp"

using namespace zeropp;

namespace {

/// The one table of all rows: matrix products at 0.7 of the peak, the round number that suits the first table best; the
/// attention of these papers keeps its scores: seven passes over them at 0.8 of the memory's bandwidth are a tenth of
/// the peak for heads of 128.
DeviceTable a100() {
  DeviceTable table;
  table.matmul = 0.7;
  table.attention = 0.1;
  return table;
}

/// Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM", SC 2021, table
/// 1; micro-batches and layers of a virtual stage from examples/sc21/run_table_1.sh of its repository.
SimulatedStep simulated(const SimulationFile& file) {
  return mini_gpt::simulate_of<Bf16>(mini_gpt::settings_of(file), file.simulation, nullptr);
}

struct Weak {
  double billions;
  std::int64_t heads, width, layers;
  int tensor, pipeline, ranks;
  std::int64_t rows, micro_batch;
  int layers_of_chunk;  ///< 0: not interleaved
  double published;     ///< TFLOP/s a GPU, counted with the recomputed forward
};
constexpr Weak weak_scaling[] = {
    {1.7, 24, 2304, 24, 1, 1, 32, 512, 16, 0, 137},         {3.6, 32, 3072, 30, 2, 1, 64, 512, 16, 0, 138},
    {7.5, 32, 4096, 36, 4, 1, 128, 512, 16, 0, 142},        {18.4, 48, 6144, 40, 8, 1, 256, 1024, 8, 0, 135},
    {39.1, 64, 8192, 48, 8, 2, 512, 1536, 4, 0, 138},       {76.1, 80, 10240, 60, 8, 4, 1024, 1792, 2, 5, 140},
    {145.6, 96, 12288, 80, 8, 8, 1536, 2304, 2, 5, 148},    {310.1, 128, 16384, 96, 8, 16, 1920, 2160, 1, 3, 155},
    {529.6, 128, 20480, 105, 8, 35, 2520, 2520, 1, 1, 163}, {1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 1, 0, 163}};

void weak_scaling_table() {
  std::printf("parameters  GPUs  t  p  d  step s  TFLOP/s  published  ratio  bubble  computing  communicating  GiB\n");
  double squares = 0;
  for (const auto& row : weak_scaling) {
    SimulationFile s;
    s.model = {row.layers, row.heads, row.width, 2048, 51200};
    s.stage = 0;
    s.recompute = true;
    s.device = a100();
    // The ranks of a stage send a part of the activations each, as the paper's "scatter/gather optimization" does.
    s.sequence_parallel = row.pipeline > 1;
    auto& o = s.simulation;
    const int data = row.ranks / row.tensor / row.pipeline;
    o = {.kernels = s.device,
         .links = {.overlap = true},
         .ranks = row.ranks,
         .mesh = {.data = data, .tensor = row.tensor, .pipeline = row.pipeline},
         .rows = row.rows,
         .sequence = 2048,
         .micro_batches = row.rows / data / row.micro_batch,
         .sharded = {.reduction = Reduction::once}};
    if (row.layers_of_chunk) {
      s.schedule = PipelineKind::interleaved;
      s.chunks = static_cast<int>(row.layers / row.pipeline) / row.layers_of_chunk;
    }
    const auto step = simulated(s);
    const double h = static_cast<double>(row.width), l = static_cast<double>(row.layers);
    const double flops = 96.0 * static_cast<double>(row.rows) * 2048 * l * h * h *
                         (1 + 2048 / (6 * h) + 51200 / (16 * l * h));  // its equation 3
    const double rate = flops / step.seconds / row.ranks / 1e12;
    double computing = 0, communicating = 0;
    std::size_t bytes = 0;
    for (auto& rank : step.ranks) {
      computing += rank.computing / step.seconds / static_cast<double>(step.ranks.size());
      communicating += rank.communicating / step.seconds / static_cast<double>(step.ranks.size());
      bytes = std::max(bytes, rank.kept.total() + rank.peak.total());
    }
    squares += std::pow(std::log(rate / row.published), 2);
    std::printf("%9.1fB %5d %2d %2d %2d %7.2f %8.1f %10.0f %6.3f %7.3f %10.3f %14.3f %4.0f\n", row.billions, row.ranks,
                row.tensor, row.pipeline, data, step.seconds, rate, row.published, rate / row.published, step.bubble(),
                computing, communicating, static_cast<double>(bytes) / (1 << 30));
  }
  std::printf("root mean square of the ratios' distance from 1: %.3f\n\n",
              std::sqrt(squares / std::size(weak_scaling)));
}

/// Qi et al., "Zero bubble pipeline parallelism", ICLR 2024 (arXiv 2401.10241): passes and transfers in milliseconds
/// from table 9, bubble rates from table 5, which the paper computed from them; models from table 3, samples a GPU and
/// second from table 4, which it measured.
struct ZeroBubble {
  const char* model;
  std::int64_t layers, heads, width, rows_of_micro_batch;
  int stages;
  std::int64_t micro_batches;
  double forward, input, weight, transfer;
  double one_f_one_b, interleaved, zb_h1;
  double samples_one_f_one_b, samples_zb_1p;
};
constexpr ZeroBubble zero_bubble[] = {
    {"1.5B", 22, 24, 2304, 6, 8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431, 0.1055, 0.1585, 11.8, 12.9},
    {"1.5B", 22, 24, 2304, 6, 8, 32, 18.513, 18.086, 9.331, 0.626, 0.1985, 0.0818, 0.1242, 12.5, 13.4},
    {"1.5B", 22, 24, 2304, 6, 8, 64, 18.546, 18.097, 9.321, 0.762, 0.1240, 0.0443, 0.0674, 13.6, 14.2},
    {"6.2B", 30, 32, 4096, 3, 8, 24, 29.718, 29.444, 19.927, 0.527, 0.2347, 0.0808, 0.1323, 3.5, 3.88},
    {"6.2B", 30, 32, 4096, 3, 8, 32, 29.802, 29.428, 19.530, 0.577, 0.1898, 0.0628, 0.1045, 3.7, 4.0},
    {"6.2B", 30, 32, 4096, 3, 8, 64, 29.935, 29.621, 19.388, 0.535, 0.1091, 0.0320, 0.0554, 4.03, 4.2},
    {"14.6B", 46, 40, 5120, 1, 16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1104, 0.1397, 1.4, 1.61},
    {"14.6B", 46, 40, 5120, 1, 16, 64, 11.307, 11.254, 8.101, 0.379, 0.2082, 0.0852, 0.1088, 1.49, 1.67},
    {"14.6B", 46, 40, 5120, 1, 16, 128, 11.325, 11.308, 8.109, 0.378, 0.1251, 0.0445, 0.0576, 1.64, 1.76},
    {"28.3B", 62, 48, 6144, 1, 32, 96, 10.419, 10.207, 7.715, 0.408, 0.2646, 0.1493, 0.1421, 0.76, 0.87},
    {"28.3B", 62, 48, 6144, 1, 32, 128, 10.408, 10.204, 7.703, 0.408, 0.2168, 0.1164, 0.1106, 0.8, 0.9},
    {"28.3B", 62, 48, 6144, 1, 32, 256, 10.402, 10.248, 7.698, 0.460, 0.1352, 0.0624, 0.0594, 0.88, 0.96}};

void zero_bubble_table() {
  std::printf("model   p    m   1F1B  published  1F1B-I  published  ZB-H1  published   ZB-V\n");
  for (const auto& row : zero_bubble) {
    // The paper's rate: of the stage that takes longest, from its first pass to its last, what is not work.
    const double work = static_cast<double>(row.micro_batches) * (row.forward + row.input + row.weight) * 1e-3;
    const auto rate = [&](PipelineKind kind, int chunks) {
      const PassTimes times{row.forward * 1e-3 / chunks, row.input * 1e-3 / chunks, row.weight * 1e-3 / chunks};
      Trace trace;
      bench::timed_step(kind, row.stages, row.micro_batches, chunks, row.stages * chunks, times, row.transfer * 1e-3,
                        &trace);
      double longest = 0;
      for (const auto* recorder : trace.recorders()) {
        double begin = 1e300, end = 0;
        for (auto& span : recorder->spans())
          if (span.micro_batch >= 0) begin = std::min(begin, span.begin), end = std::max(end, span.end);
        longest = std::max(longest, end - begin);
      }
      return 1 - work / longest;
    };
    const int layers_of_stage = static_cast<int>(row.layers + 2) / row.stages;
    std::printf("%-6s %2d %4d %6.4f %10.4f %7.4f %10.4f %6.4f %10.4f %6.4f\n", row.model, row.stages,
                static_cast<int>(row.micro_batches), rate(PipelineKind::one_forward_one_backward, 1), row.one_f_one_b,
                rate(PipelineKind::interleaved, layers_of_stage), row.interleaved, rate(PipelineKind::zb_h1, 1),
                row.zb_h1, rate(PipelineKind::zb_v, 2));
  }
}

/// The same models by the table of kernels, where the paper's ZB-1p found the schedule ZB-H1.
void throughput_table() {
  std::printf("model   p    m  1F1B  published  ratio  ZB-H1  ZB-1p published  ratio  samples a GPU and second\n");
  double squares = 0;
  for (const auto& row : zero_bubble) {
    SimulationFile s;
    s.model = {row.layers, row.heads, row.width, 1024, 50304};
    s.stage = 0;
    s.device = a100();
    s.simulation = {.kernels = s.device,
                    .ranks = row.stages,
                    .mesh = {.data = 1, .pipeline = row.stages},
                    .rows = row.micro_batches * row.rows_of_micro_batch,
                    .sequence = 1024,
                    .micro_batches = row.micro_batches,
                    .sharded = {.reduction = Reduction::once}};
    const auto samples = [&](PipelineKind kind) {
      s.schedule = kind;
      return static_cast<double>(s.simulation.rows) / simulated(s).seconds / row.stages;
    };
    const double one = samples(PipelineKind::one_forward_one_backward), zero = samples(PipelineKind::zb_h1);
    for (double ratio : {one / row.samples_one_f_one_b, zero / row.samples_zb_1p})
      squares += std::pow(std::log(ratio), 2) / 2;
    std::printf("%-6s %2d %4d %5.2f %10.2f %6.3f %6.2f %16.2f %6.3f\n", row.model, row.stages,
                static_cast<int>(row.micro_batches), one, row.samples_one_f_one_b, one / row.samples_one_f_one_b, zero,
                row.samples_zb_1p, zero / row.samples_zb_1p);
  }
  std::printf("root mean square of the ratios' distance from 1: %.3f\n\n", std::sqrt(squares / std::size(zero_bubble)));
}

}  // namespace

int main() try {
  zero_bubble_table();
  std::printf("\n");
  throughput_table();
  weak_scaling_table();
} catch (const Error& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return static_cast<int>(error.exit_code());
}
