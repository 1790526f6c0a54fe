// SPDX-License-Identifier: Apache-2.0
// One step of a pipeline on one rank: carries out the schedule's instructions. Activations and gradients of activations
// travel between neighbouring parts of the model; what a forward saved waits for its backward.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/parallel/micro_batches.hpp>
#include <zeropp/parallel/pipeline/pipeline_stage.hpp>
#include <zeropp/parallel/sharding/runner.hpp>
#include <zeropp/parallel/sharding/sharded_context.hpp>

namespace zeropp {

/// Model: a ShardedEngine; Piped: its PipelineStage.
template <class Model, class Piped>
class PipelineRun {
  using Context = typename Model::Context;
  using T = typename Context::Activation;
  using Activation = Tensor<T, 3>;
  using Chunk = typename Piped::Chunk;
  using Saved = decltype(std::declval<Model&>()
                             .forward_of(std::declval<Chunk&>(), std::declval<Context&>(), PipelineValue<T>{})
                             .saved);

 public:
  /// `schedule` is the stage's, for so many micro-batches; to evaluate, its layout is enough.
  PipelineRun(Model& model, Piped& stage, PipelineSchedule schedule, MicroBatches batches)
      : model_(model),
        stage_(stage),
        batches_(std::move(batches)),
        schedule_(std::move(schedule)),
        flights_(stage.chunks().size() * static_cast<std::size_t>(batches_.count())) {}

  /// Forward and backward of all micro-batches; on the last stage their losses are added to `total`.
  void train(Loss& total) {
    for (const auto& op : schedule_.instructions(stage_.options().comm.rank())) {
      switch (op.kind) {
        case PipelineOp::Kind::receive_activation:
        case PipelineOp::Kind::receive_gradient: expect(op); break;
        case PipelineOp::Kind::forward: forward(op); break;
        case PipelineOp::Kind::send_activation: send(op, at(op).out); break;
        case PipelineOp::Kind::backward:
        case PipelineOp::Kind::backward_input: backward(op, total); break;
        case PipelineOp::Kind::backward_weight: backward_weight(op); break;
        case PipelineOp::Kind::send_gradient: send(op, at(op).dx); break;
      }
    }
  }

  /// Forward only, of one micro-batch; the loss is there on the last stage, and 0 elsewhere.
  Loss evaluate() {
    Loss loss;
    const auto& comm = stage_.options().comm;
    for (int part = 0; part < schedule_.parts(); ++part) {
      if (schedule_.stage_of(part) != comm.rank()) continue;
      PipelineOp op{.chunk = schedule_.chunk_of(part)};
      if (part > 0 && schedule_.stage_of(part - 1) != comm.rank()) {
        op.peer = schedule_.stage_of(part - 1);
        at(op).in = receive(op);
      }
      forward(op);
      at(op).saved.reset();
      if (part + 1 == schedule_.parts())
        loss = at(op).loss;
      else if (op.peer = schedule_.stage_of(part + 1); op.peer != comm.rank())
        send(op, at(op).out);
    }
    if (!loss.known()) loss.add(0, 0);
    return loss;
  }

 private:
  /// The values that a micro-batch has left on a chunk and that are still to be used.
  struct Flight {
    Activation in, out, dy, dx;
    std::optional<Saved> saved;
    WeightWork<typename Context::Device, typename Context::Precision> weights;  ///< between a backward's two halves
    Loss loss;
  };

  Flight& at(int chunk, std::int64_t micro_batch) {
    return flights_[static_cast<std::size_t>(chunk) * static_cast<std::size_t>(batches_.count()) +
                    static_cast<std::size_t>(micro_batch)];
  }
  Flight& at(const PipelineOp& op) { return at(op.chunk, op.micro_batch); }
  int model_part(const PipelineOp& op) const { return schedule_.model_part(stage_.options().comm.rank(), op.chunk); }
  /// The flight on the neighbouring part if that is on this rank too.
  Flight* neighbour(const PipelineOp& op, int direction) {
    const int part = model_part(op) + direction;
    if (part < 0 || part >= schedule_.parts() || schedule_.stage_of(part) != stage_.options().comm.rank())
      return nullptr;
    return &at(schedule_.chunk_of(part), op.micro_batch);
  }

  Comm comm() { return on_device(stage_.options().comm, model_.device()); }
  /// The schedule receives as early as it can be sure that stages don't lock; where sends return at once it is late
  /// enough when a pass needs what comes, so that passes before it, of weights above all, don't wait for the link.
  void expect(const PipelineOp& op) {
    if (comm().buffers_sends())
      expected_[op.peer].push_back(op);
    else
      arrived(op) = receive(op);
  }
  Activation& arrived(const PipelineOp& op) {
    return op.kind == PipelineOp::Kind::receive_activation ? at(op).in : at(op).dy;
  }
  /// Receives from the neighbour's stage, in the order of its sends, until `input` is there.
  void await(const PipelineOp& op, int direction, const Activation& input) {
    const int part = model_part(op) + direction;
    if (input || part < 0 || part >= schedule_.parts()) return;
    for (auto& expected = expected_[schedule_.stage_of(part)]; !input && !expected.empty(); expected.pop_front())
      arrived(expected.front()) = receive(expected.front());
  }
  Activation receive(const PipelineOp& op) {
    const auto& options = stage_.options();
    Activation x(model_.device().pool(),
                 {batches_.rows(op.micro_batch), batches_.sequence() / options.sequence_shards, options.width});
    comm().recv(op.peer, x.span());
    return x;
  }
  void send(const PipelineOp& op, Activation& x) {
    comm().send(op.peer, std::span<const T>{x.span()});
    x = {};
  }

  Recording recorded(SpanKind kind, const PipelineOp& op) const {
    return {model_.recorder(), kind, op.micro_batch, op.chunk};
  }
  void forward(const PipelineOp& op) {
    auto& flight = at(op);
    await(op, -1, flight.in);
    const auto span = recorded(SpanKind::forward, op);
    PipelineValue<T> value{.x = std::move(flight.in)};
    if (model_part(op) == 0) value.tokens = batches_.tokens(op.micro_batch);
    Context ctx(model_.device(), batches_.run(op.micro_batch));
    auto [out, saved] = model_.forward_of(chunk(op), ctx, std::move(value));
    flight.loss = out.loss;
    flight.saved.emplace(std::move(saved));
    auto* next = neighbour(op, 1);
    (next ? next->in : flight.out) = std::move(out.x);
  }
  void backward(const PipelineOp& op, Loss& total) {
    auto& flight = at(op);
    await(op, 1, flight.dy);
    const bool split = op.kind == PipelineOp::Kind::backward_input;
    const auto span = recorded(split ? SpanKind::backward_input : SpanKind::backward, op);
    auto ctx = begin(op);
    auto saved = std::move(*flight.saved);
    flight.saved.reset();
    auto dx =
        model_.backward_of(chunk(op), ctx, std::move(flight.dy), std::move(saved), split ? &flight.weights : nullptr);
    if (model_part(op) + 1 == schedule_.parts()) total.add(flight.loss);
    auto* previous = neighbour(op, -1);
    (previous ? previous->dy : flight.dx) = std::move(dx);
  }
  void backward_weight(const PipelineOp& op) {
    const auto span = recorded(SpanKind::backward_weight, op);
    auto ctx = begin(op);
    model_.run_weight_work(ctx, std::exchange(at(op).weights, {}));
  }
  Context begin(const PipelineOp& op) {
    model_.begin_micro_batch(op.micro_batch == 0, op.micro_batch + 1 == batches_.count());
    return Context(model_.device(), batches_.run(op.micro_batch));
  }
  Chunk& chunk(const PipelineOp& op) { return stage_.chunks()[static_cast<std::size_t>(op.chunk)]; }

  Model& model_;
  Piped& stage_;
  MicroBatches batches_;
  PipelineSchedule schedule_;
  std::vector<Flight> flights_;
  std::map<int, std::deque<PipelineOp>> expected_;  ///< by stage: what it has sent or will, not yet received
};

/// The passes of a stage follow its schedule.
template <Pipelined L>
struct Runner<L> {
  template <class Engine>
  static void train(Engine& engine, L& stage, const MicroBatches& batches, Loss& total) {
    PipelineRun(engine, stage, stage.schedule(batches.count()), batches).train(total);
  }
  template <class Engine>
  static Loss evaluate(Engine& engine, L& stage, const MicroBatches& batches) {
    return PipelineRun(engine, stage, stage.layout(), batches).evaluate();
  }
  static std::vector<ModelParameter> model_parameters(L& stage) { return stage.model_parameters(); }
  static int parameters_in_order(L& stage) { return stage.parameters_in_model(); }
  static const Comm* stages(L& stage) { return &stage.options().comm; }
  static int last_stage(L& stage) { return stage.last_stage(); }
  static std::string describe(L& stage) { return stage.describe(); }
};

}  // namespace zeropp
