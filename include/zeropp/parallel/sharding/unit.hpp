// SPDX-License-Identifier: Apache-2.0
// A unit: the grain of gathering, reducing and saving. Its parameters lie one after the other in one flat buffer,
// padded to a multiple of the ranks; each rank owns one part of it, its shard. At the lower stages a rank also holds
// the whole of the weights (stages 0 to 2) and of the gradients (stages 0 and 1).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/layers/parameter.hpp>
#include <zeropp/layers/precision.hpp>
#include <zeropp/parallel/sharding/bucketed_reducer.hpp>
#include <zeropp/parallel/sharding/stage.hpp>

namespace zeropp {

template <Precision P, Device D>
class Unit {
 public:
  using Weight = typename P::Weight;
  using Gradient = typename P::Gradient;
  /// The bits that the optimizer's ranks keep beside a weight, so that its fp32 master is exact: where the precision
  /// keeps any.
  using Kept = kept_t<Weight>;
  static constexpr bool keeps_master = P::keeps_master;

  /// An owner is updated by the optimizer. A *twin* is a tied parameter alone: it sums its gradients apart from its
  /// owner's, in the same shards; its weights are the owner's memory, or a copy where the owner is on another stage of
  /// a pipeline.
  enum class Role { owner, twin, distant_twin };

  Unit(int index, std::vector<Parameter*> parameters, Comm comm, D& device, Stage stage, Role role = Role::owner)
      : index_(index),
        stage_(stage),
        role_(role),
        comm_(std::move(comm)),
        device_(&device),
        parameters_(std::move(parameters)) {
    for (auto* p : parameters_) {
      p->unit = index;
      p->offset = size_;
      size_ += p->size();
    }
    padded_ = round_up(size_, comm_.size());
    const auto share = padded_ / comm_.size();
    shard_ = {comm_.rank() * share, (comm_.rank() + 1) * share};
    gradients_ = keep<Gradient>(whole_gradients() ? whole_range() : shard_, Purpose::gradients);
    if (role == Role::twin) return;
    weights_ = keep<Weight>(held(), Purpose::weights);
    if (keeps_master && role == Role::owner) masters_ = keep<Kept>(updated(), Purpose::states);
    place_values(held() == whole_range() ? weights_.get() : nullptr);
  }

  /// Parameters that the unit owns, in the order of its layers' forward; their `offset` is into the flat buffer.
  const std::vector<Parameter*>& parameters() const { return parameters_; }
  int index() const { return index_; }
  std::int64_t size() const { return size_; }      ///< elements
  std::int64_t padded() const { return padded_; }  ///< elements, with the padding to a multiple of the ranks

  Range whole_range() const { return {0, padded_}; }
  Range shard() const { return shard_; }  ///< this rank's part of the flat buffer
  /// The range of weights that this rank keeps: all of them before stage 3, and where there is one rank.
  Range held() const { return keeps_whole() ? whole_range() : shard_; }
  /// The range that the optimizer of this rank updates: all at stage 0.
  Range updated() const { return stage_ == Stage::none ? whole_range() : shard_; }

  std::span<Weight> weights() {
    arrive();
    return view<Weight>(weights_, held());
  }
  /// The bits that complete each narrow weight of updated() to its fp32 master: see master_of_t. Empty where the
  /// precision keeps no masters.
  std::span<Kept> masters() { return keeps_master ? view<Kept>(masters_, updated()) : std::span<Kept>{}; }
  /// Gradients summed over ranks, over updated(); valid between a training pass and the next.
  std::span<Gradient> gradients() {
    publish_gradients();
    gradients_on_their_way_.wait();
    return part_of_gradients(updated());
  }
  /// The same over shard(): what norms are taken of, so that they do not depend on the stage.
  std::span<Gradient> shard_gradients() { return part_of_gradients(shard_); }
  /// The part of them that belongs to one of the unit's parameters.
  std::span<Gradient> shard_gradients(const Parameter& p) {
    const auto mine = shard_.clipped({p.offset, p.offset + p.size()});
    return mine.size() ? part_of_gradients(mine) : std::span<Gradient>{};
  }
  /// The shard of the weights, whatever else of them is held.
  std::span<Weight> shard_weights() {
    return weights().subspan(static_cast<std::size_t>(shard_.begin - held().begin),
                             static_cast<std::size_t>(shard_.size()));
  }

  /// A parameter of another layer that shares the weights of `owner`, which this unit owns.
  void add_tied(Parameter& tied, const Parameter& owner) {
    tied.unit = index_;
    tied.offset = owner.offset;
    tied_.push_back(&tied);
    place_values(resident() ? whole_base() : nullptr);
  }

  bool resident() const { return keeps_whole() || whole_; }
  /// Begins to make the whole unit resident on every rank (stage 3; elsewhere it always is). A collective.
  void gather() {
    if (resident()) return;
    whole_ = device_->pool().take_temporary(static_cast<std::size_t>(padded_) * sizeof(Weight), Purpose::weights);
    const Piece piece{whole_.get(), weights_.get(), padded_};
    weights_on_their_way_ = comm_.all_gather_async(dtype_of<Weight>, {&piece, 1});
    place_values(whole_.get());
  }
  /// Work enqueued from now on finds the weights that gather() or publish() has asked for.
  void arrive() const { weights_on_their_way_.wait(); }
  void release() {
    if (keeps_whole()) return;
    arrive();
    whole_.reset();
    place_values(nullptr);
  }
  /// All weights of the unit, padding included, while it is resident.
  std::span<const Weight> whole() const {
    if (!resident()) throw Error(text("unit ", index_, " is not in memory; hold a lease of it (gather)"));
    arrive();
    return {reinterpret_cast<const Weight*>(whole_base()), static_cast<std::size_t>(padded_)};
  }

  /// Keeps the unit resident while it lives.
  class Lease {
   public:
    explicit Lease(Unit& unit) : unit_(unit.resident() ? nullptr : &unit) {
      unit.gather();
      unit.arrive();
    }
    Lease(Lease&& other) noexcept : unit_(std::exchange(other.unit_, nullptr)) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (unit_) unit_->release();
    }

   private:
    Unit* unit_;
  };
  [[nodiscard]] Lease lease() { return Lease{*this}; }

  /// The layer of the unit is about to run backward: its gradients have a place, where they count as zero at first.
  void begin_gradient(Reduction reduction, bool first_micro_batch) {
    const bool accumulates = reduction == Reduction::once && !first_micro_batch;
    // Where whole gradients are kept anyway they are summed there, unless that place holds earlier micro-batches' sums.
    in_place_ = whole_gradients() && (reduction == Reduction::once || first_micro_batch);
    gradients_due_ = false;
    gradients_on_their_way_.wait();
    if (!in_place_ && !local_)
      local_ = device_->pool().take_temporary(static_cast<std::size_t>(padded_) * sizeof(Gradient), Purpose::gradients);
    auto gradient = local_gradient();
    place_gradients(reinterpret_cast<std::byte*>(gradient.data()), !accumulates);
    if (!accumulates) fill(gradient.subspan(static_cast<std::size_t>(size_)));  // the padding
  }
  /// The layer of the unit has run backward: its gradient goes to the reducer.
  void end_gradient(Reduction reduction, bool first_micro_batch, bool last_micro_batch,
                    BucketedReducer<Gradient>& reducer) {
    for (auto* p : parameters_)
      if (p->gradient_unset)
        fill({static_cast<Gradient*>(p->gradient), static_cast<std::size_t>(p->size())});  // no layer has used it
    place_gradients(nullptr);
    if (reduction == Reduction::once && !last_micro_batch) return;
    auto whole = local_gradient();
    if (in_place_) {
      reducer.reduce(whole, part_of_gradients(shard_));
    } else if (!whole_gradients() && (first_micro_batch || reduction == Reduction::once)) {
      reducer.reduce(whole, part_of_gradients(shard_), [this] { local_.reset(); });
    } else {  // summed over ranks within the local buffer, then added to the micro-batches before
      auto part = whole.subspan(static_cast<std::size_t>(shard_.begin), static_cast<std::size_t>(shard_.size()));
      reducer.reduce(whole, part, [this, part] {
        add_to_shard(part);
        local_.reset();
      });
    }
  }
  /// Adds to the gradients of the shard.
  void add_to_shard(std::span<Gradient> part) {
    auto sum = part_of_gradients(shard_);
    kernels::add(*device_, sum, part, sum);
  }
  /// Work enqueued from now on finds all weights and gradients that are on their way.
  void settle() {
    gradients_on_their_way_.wait();
    arrive();
  }
  /// Forgets a backward that did not end: the way out after an error.
  void abandon() {
    settle();
    local_.reset();
    place_gradients(nullptr);
    release();
  }

  /// Sends the shards of the weights that ranks have updated to all of them, beside what computes: arrive() waits.
  void publish() {
    const auto piece = weights_piece();
    weights_on_their_way_ = comm_.all_gather_async(dtype_of<Weight>, {&piece, 1});
  }
  /// The same for the summed gradients of stage 0, where gradients_due() was called since; gradients() waits.
  void publish_gradients() {
    if (!std::exchange(gradients_due_, false)) return;
    const auto piece = gradients_piece();
    gradients_on_their_way_ = comm_.all_gather_async(dtype_of<Gradient>, {&piece, 1});
  }

  void gradients_due() { gradients_due_ = true; }  ///< each rank has summed its shard of them

  /// This rank's part of a gather: the weights that it updated (stages 1 and 2), or its reduced gradients (stage 0).
  Piece weights_piece() { return {weights_.get(), shard_weights().data(), padded_}; }
  Piece gradients_piece() { return {gradients_.get(), part_of_gradients(shard_).data(), padded_}; }
  Piece masters_piece() {
    return {masters_.get(), view<Kept>(masters_, updated()).data() + (shard_.begin - updated().begin), padded_};
  }

 private:
  template <class T>
  Storage keep(Range range, Purpose purpose) {
    return device_->pool().take_persistent(static_cast<std::size_t>(range.size()) * sizeof(T), purpose);
  }
  template <class T>
  static std::span<T> view(const Storage& storage, Range range) {
    return {reinterpret_cast<T*>(storage.get()), static_cast<std::size_t>(range.size())};
  }
  std::span<Gradient> part_of_gradients(Range range) {
    const auto from = whole_gradients() ? range.begin : range.begin - shard_.begin;
    return {reinterpret_cast<Gradient*>(gradients_.get()) + from, static_cast<std::size_t>(range.size())};
  }
  std::span<Gradient> local_gradient() { return view<Gradient>(in_place_ ? gradients_ : local_, whole_range()); }
  std::byte* whole_base() const { return keeps_whole() ? weights_.get() : whole_.get(); }

  void place_values(std::byte* base) {
    for (auto* list : {&parameters_, &tied_}) place(*list, base, sizeof(Weight), &Parameter::value);
  }
  void place_gradients(std::byte* base, bool unset = false) {
    place(parameters_, base, sizeof(Gradient), &Parameter::gradient);
    for (auto* p : parameters_) p->gradient_unset = unset;
  }
  void fill(std::span<Gradient> zeros) {
    if (!zeros.empty()) kernels::fill(*device_, zeros, Gradient{});
  }
  static void place(const std::vector<Parameter*>& list, std::byte* base, std::size_t element,
                    void* Parameter::*member) {
    for (auto* p : list) p->*member = base ? base + static_cast<std::size_t>(p->offset) * element : nullptr;
  }
  bool keeps_whole() const { return stage_ < Stage::parameters || comm_.size() == 1; }
  bool whole_gradients() const { return role_ == Role::owner && (stage_ < Stage::gradients || comm_.size() == 1); }

  int index_;
  Stage stage_;
  Role role_;
  Comm comm_;
  D* device_;
  std::vector<Parameter*> parameters_, tied_;
  std::int64_t size_ = 0, padded_ = 0;
  Range shard_;
  Storage weights_, masters_, gradients_;  // kept
  Storage whole_, local_;                  // while in use
  mutable Pending weights_on_their_way_, gradients_on_their_way_;
  bool in_place_ = false, gradients_due_ = false;
};

}  // namespace zeropp
