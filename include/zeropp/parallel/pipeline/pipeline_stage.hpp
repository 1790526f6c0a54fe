// SPDX-License-Identifier: Apache-2.0
// `PipelineStage<L>`: the part of a model that one rank of the pipeline axis runs. L is a Sequential of layers, one
// Repeat, and layers; it is cut inside the Repeat. `Sharded<PipelineStage<L>, Stage>` trains it by a schedule.
//
//   PipelineStage<Gpt> stage{{.comm = mesh.pipeline(), .schedule = PipelineKind::zb_h1, .width = 768}, Gpt{config}};
//   Sharded<PipelineStage<Gpt>, Stage::gradients> model{mesh, device, std::move(stage)};
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/layers/visit.hpp>
#include <zeropp/parallel/pipeline/around_repeat.hpp>
#include <zeropp/parallel/pipeline/cut.hpp>
#include <zeropp/parallel/pipeline/pipeline_chunk.hpp>
#include <zeropp/parallel/pipeline/schedule.hpp>
#include <zeropp/parallel/sharding/model_parameters.hpp>

namespace zeropp {

struct PipelineOptions {
  Comm comm = {};  ///< the ranks of the pipeline axis
  PipelineKind schedule = PipelineKind::one_forward_one_backward;
  int chunks = 1;          ///< parts of the model on each rank; interleaved: 2 or more, ZB-V: 2
  std::int64_t width = 0;  ///< C of what blocks hand on, [B, T, C]; 0: as wide as the layer in front of them says
  std::int64_t sequence_shards = 1;  ///< T is cut so often under sequence parallelism
};

template <class L>
class PipelineStage {
  using Whole = decltype(detail::sequential_of(std::declval<const typename detail::model_in<L>::type&>()));
  static_assert(!detail::around_model<L>,
                "PipelineStage<Sharded<L>>: state is partitioned last; write Sharded<PipelineStage<L>, Stage>");
  static_assert(!std::is_void_v<Whole>,
                "PipelineStage<L>: L must be a Sequential<Front..., Repeat<Block>, Back...>, or derive from one");
  using Around = detail::AroundRepeat<Whole>;
  static_assert(
      Around::valid,
      "PipelineStage<L>: the Sequential must hold exactly one Repeat<Block>, with layers before and behind it");
  using Layers = decltype(Whole::children);
  using Blocks = std::tuple_element_t<Around::at, Layers>;

 public:
  static constexpr LayerTraits traits{.container = true, .around_model = true, .pipelined = true};
  using Model = L;
  using Chunk =
      PipelineChunk<decltype(Around::front(std::declval<Layers&>())), typename decltype(Blocks::children)::value_type,
                    decltype(Around::back(std::declval<Layers&>()))>;

  /// Keeps this rank's chunks of `whole`. Throws ConfigError: fewer blocks than parts, a schedule that the sizes do not
  /// suit, a tie that leads nowhere.
  PipelineStage(PipelineOptions options, L whole) : options_(std::move(options)) {
    const int stages = options_.comm.size(), rank = options_.comm.rank();
    layout_ = make_schedule(options_.schedule, stages, stages, options_.chunks);  // refuses what cannot be
    layout_.of_stage.clear();
    visit_parameters(whole, [&](Parameter& p) { p.order = parameters_in_model_++; });

    auto& blocks = std::get<Around::at>(whole.children).children;
    auto front = Around::front(whole.children);
    auto back = Around::back(whole.children);
    if (options_.width == 0) options_.width = width_of(front);
    if (options_.width < 1)
      throw ConfigError(text("PipelineStage: width must say how wide the blocks' outputs are, got ", options_.width,
                             ", and no layer in front of the blocks has a width()"));
    std::vector<double> costs;
    for (auto& block : blocks) costs.push_back(cost_of(block));
    const auto cut = cut_pipeline(costs, 0, cost_of(back), stages * options_.chunks);

    std::map<std::string, Place> places;
    const auto note = [&](auto& layer, int part) {
      visit_parameters(layer, [&](Parameter& p) {
        const int at = layout_.stage_of(part);
        if (!places.emplace(p.name, Place{&p, at}).second) refuse_second(p);
        if (p.tied_to.empty()) model_parameters_.push_back({p.name, p.whole_shape(), p.split(), at});
      });
    };
    note(front, 0);
    for (std::size_t part = 0; part < cut.size(); ++part)
      for (auto i = cut[part].begin; i < cut[part].end; ++i)
        note(blocks[static_cast<std::size_t>(i)], static_cast<int>(part));
    note(back, static_cast<int>(cut.size()) - 1);
    tie(places);

    for (int c = 0; c < options_.chunks; ++c) {
      const int part = layout_.model_part(rank, c);
      auto& chunk = chunks_.emplace_back();
      if (part == 0) chunk.front.emplace(std::move(front));
      const auto range = cut[static_cast<std::size_t>(part)];
      for (auto i = range.begin; i < range.end; ++i)
        chunk.body.children.push_back(std::move(blocks[static_cast<std::size_t>(i)]));
      if (part + 1 == static_cast<int>(cut.size())) chunk.back.emplace(std::move(back));
      blocks_.push_back(range);
    }
  }

  template <class F>
  void for_each_child(F&& f) {
    for (auto& chunk : chunks_) f(chunk);
  }

  const PipelineOptions& options() const { return options_; }
  std::vector<Chunk>& chunks() { return chunks_; }
  /// Which blocks of the model chunk `c` holds.
  Range blocks_of(int c) const { return blocks_[static_cast<std::size_t>(c)]; }
  /// "front 0-3": what this rank holds; the layers before the blocks, blocks by number, the layers behind them.
  std::string describe() const {
    std::string out;
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      const auto& range = blocks_[c];
      out += text(c ? ", " : "", chunks_[c].front ? "front " : "", range.begin);
      if (range.size() > 1) out += text("-", range.end - 1);
      if (chunks_[c].back) out += " back";
    }
    return out;
  }
  /// The parameters of all stages, in the order of the model; Parameter::order counts them, tied ones too.
  int parameters_in_model() const { return parameters_in_model_; }
  /// Those that are not tied.
  const std::vector<ModelParameter>& model_parameters() const { return model_parameters_; }
  /// The instructions of a step.
  PipelineSchedule schedule(std::int64_t micro_batches) const {
    return make_schedule(options_.schedule, options_.comm.size(), micro_batches, options_.chunks);
  }
  /// Which part of the model is where.
  const PipelineSchedule& layout() const { return layout_; }
  /// The stage that knows the loss.
  int last_stage() const { return layout_.stage_of(layout_.parts() - 1); }

 private:
  struct Place {
    Parameter* parameter;
    int stage;
  };

  /// The width of the output: that of the last layer inside with a width(); 0 without any.
  template <class Layer>
  static std::int64_t width_of(Layer& layer) {
    std::int64_t width = 0;
    if constexpr (requires { layer.width(); })
      width = layer.width();
    else
      zeropp::for_each_child(layer, [&](auto& child) {
        if (const auto inside = width_of(child)) width = inside;
      });
    return width;
  }
  /// Elements that take part in products: every row of the input meets each of them. A tied head computes too.
  template <class Layer>
  static double cost_of(Layer& layer) {
    double cost = 0;
    visit_parameters(layer, [&](Parameter& p) { cost += static_cast<double>(p.size()); });
    return cost;
  }

  /// A parameter tied to one on another stage is a copy of it: it begins alike, and both sides know of each other.
  static void tie(std::map<std::string, Place>& places) {
    for (auto& [name, place] : places) {
      auto& p = *place.parameter;
      if (p.tied_to.empty()) continue;
      const auto found = places.find(p.tied_to);
      check_tie(p, found == places.end() ? nullptr : found->second.parameter);
      auto& owner = *found->second.parameter;
      if (found->second.stage == place.stage) continue;
      if (owner.tied_stage >= 0)
        throw ConfigError(text("several parameters are tied to ", p.tied_to, " across stages of the pipeline, ", name,
                               " among them; one can be"));
      owner.tied_stage = place.stage;
      p.tied_stage = found->second.stage;
    }
  }

  PipelineOptions options_;
  std::vector<Chunk> chunks_;
  std::vector<Range> blocks_;
  PipelineSchedule layout_;
  std::vector<ModelParameter> model_parameters_;
  int parameters_in_model_ = 0;
};

}  // namespace zeropp
