// SPDX-License-Identifier: Apache-2.0
// The plan of a training in words: what rank 0 will hold, and what lies on each tensor and pipeline rank of the mesh.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <zeropp/app/config/settings.hpp>
#include <zeropp/app/log/console.hpp>
#include <zeropp/app/machine.hpp>
#include <zeropp/train/checkpoint/together.hpp>
#include <zeropp/train/plan.hpp>

namespace zeropp {

namespace detail {

/// ", 1f1b: 11.1 % of a step idle if F = B = W" (forward, and the halves of backward); nothing where there is one
/// stage.
inline std::string pipeline_text(const ParallelOptions& o, int stages, std::int64_t micro_batches) {
  if (stages == 1) return "";
  const auto line = PipelineTimeline::of(make_schedule(o.schedule, stages, micro_batches, o.chunks), {});
  return text(", ", name_of(o.schedule), ": ", fixed(100 * line.bubble(), 1), " % of a step idle if F = B = W");
}

struct PlanLines {
  std::string words;
  double bytes = 0;  ///< of these ranks together
};

/// A line for each tensor, pipeline and context rank of a mesh of `ranks` ranks, of the first data rank.
template <class F>
PlanLines plan_lines(const Comm& world, int ranks, const MeshOptions& options, F&& plan_of) {
  std::vector<Mesh> meshes;
  const int parts = options.tensor * options.pipeline * options.context;
  const auto strides = mesh_strides({ranks / parts, options.tensor, options.pipeline, options.context}, options.order);
  for (int part = 0; part < parts && parts > 1; ++part) {  // by tensor, context, pipeline: the default order of ranks
    const int tensor = part % options.tensor, context = part / options.tensor % options.context,
              pipeline = part / (options.tensor * options.context);
    meshes.emplace_back(dry_comm(tensor * strides[1] + pipeline * strides[2] + context * strides[3], ranks), options);
  }
  const auto count = static_cast<std::int64_t>(meshes.size());
  std::string mine;
  double bytes = 0;
  for (auto i = part_begin(count, world.rank(), world.size()); i < part_begin(count, world.rank() + 1, world.size());
       ++i) {
    const auto& mesh = meshes[static_cast<std::size_t>(i)];
    const Plan plan = plan_of(mesh);
    bytes += static_cast<double>(plan.total);
    mine += text("\n  tensor ", mesh.tensor().rank(), ", pipeline ", mesh.pipeline().rank(),
                 mesh.context().size() > 1 ? text(", context ", mesh.context().rank()) : std::string(), ": blocks ",
                 plan.part, ", ", grouped(plan.parameters), " parameters, ",
                 bytes_text(static_cast<double>(plan.kept.total())), " kept, ",
                 grouped(static_cast<std::int64_t>(plan.total)), " B in all");
  }
  PlanLines all;
  for (auto& lines : gather_texts(world, mine)) all.words += lines;
  all.bytes = world.sum(bytes);
  return all;
}

}  // namespace detail

/// The memory there is for a plan.
struct PlanRoom {
  std::string of_a_rank;     ///< in words: "7.6 GiB on this machine"
  double of_all_ranks = 0;   ///< bytes, where all ranks are on this machine and share them; else 0
};

/// Prints on rank 0 the plan of a training on `ranks` ranks; `plan_of(mesh)` is that of the rank of a dry mesh. The ranks
/// of `world` share the work, so that each engine that does not fit its mesh refuses here. A collective.
template <class F>
void print_plan(Console& console, const Comm& world, const TrainSettings& s, int ranks, std::int64_t tokens,
                const PlanRoom& room, F&& plan_of) {
  const auto options = s.mesh(ranks);
  const auto lines = detail::plan_lines(world, ranks, options, plan_of);
  if (world.rank() != 0) return;
  const Mesh first{dry_comm(0, ranks), options}, last{dry_comm(ranks - 1, ranks), options};
  const auto passes = s.micro_batches(first.data().size());
  console.heading(text("plan of ", first.describe(), ": ZeRO-", s.zero, ", ", s.precision,
                       s.recompute ? ", recompute, " : ", ", grouped(tokens), " tokens a step in ",
                       passes,
                       passes == 1 ? " micro-batch" : " micro-batches", detail::pipeline_text(s.parallel(), s.pipeline, passes)));
  const auto of_first = plan_of(first), of_last = plan_of(last);
  console.line("rank 0:\n" + describe(of_first) + " of " + room.of_a_rank);
  const int parts = options.tensor * options.pipeline * options.context;
  if (parts > 1)
    console.line("first data rank:" + lines.words);
  else if (of_last.total != of_first.total)
    console.line(text("  last rank    ", grouped(static_cast<std::int64_t>(of_last.total)), " B"));
  if (ranks == 1 || room.of_all_ranks == 0) return;
  const double largest = static_cast<double>(std::max(of_first.total, of_last.total));  // of ranks that differ by a row
  const double all = parts > 1 ? lines.bytes * (ranks / parts) : largest * ranks;
  console.line(text("all ", ranks, " ranks of this machine: ", bytes_text(all), " of ", bytes_text(room.of_all_ranks),
                    all > room.of_all_ranks ? ": MORE THAN THERE IS" : ""));
}

}  // namespace zeropp
