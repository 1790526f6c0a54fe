// SPDX-License-Identifier: Apache-2.0
// The loss scale of training in fp16 (Micikevicius et al., "Mixed precision training", ICLR 2018), as DeepSpeed's
// DynamicLossScaler: gradients of activations are computed of scale · loss, so that small ones do not vanish in f16.
// Scales are powers of two: what they multiply, the optimizer divides exactly.
//
//   LossScaler scaler;
//   Loss loss = model.train(batch, {.micro_batches = 4, .loss_scale = scaler.scale()});  // the loss is not scaled
//   ClipResult clip = clip_by_global_norm(model, 1.0f);  // nor is this norm
//   scaler.update(adam.step(rate, clip));  // a step that overflows is left out
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>

#include <zeropp/base/error.hpp>

namespace zeropp {

struct LossScaleOptions {
  float fixed = 0;             ///< a scale that stays; 0: one that adapts, by what follows
  float initial = 65536;       ///< of the first step
  std::int64_t window = 1000;  ///< steps without an overflow after which it doubles
  int hysteresis = 2;  ///< overflows since it last doubled that it takes to halve; each further one halves again
  float minimum = 1;
  bool consecutive_hysteresis = false;  ///< each step without an overflow makes hysteresis whole again
};

/// Where an adapting scale stands: what a checkpoint keeps of it.
struct LossScaleState {
  float scale = 1;
  std::int64_t good_steps = 0;  ///< since the last overflow or doubling
  int hysteresis = 1;           ///< overflows that are left until it halves
  bool operator==(const LossScaleState&) const = default;
};

class LossScaler {
 public:
  /// Throws ConfigError for scales that are no powers of two, a window or a hysteresis below 1.
  explicit LossScaler(LossScaleOptions options = {}) : options_(options) {
    if (options.fixed != 0) {
      check_scale("fixed", options.fixed);
      state_.scale = options.fixed;
      return;
    }
    check_scale("initial", options.initial), check_scale("minimum", options.minimum);
    if (options.minimum > options.initial)
      throw ConfigError(text("the initial loss scale ", options.initial, " is below the minimum ", options.minimum));
    if (options.window < 1 || options.hysteresis < 1)
      throw ConfigError(text("window and hysteresis of a loss scale count from 1, got ", options.window, " and ",
                             options.hysteresis));
    state_ = {options.initial, 0, options.hysteresis};
  }

  /// The factor of the next step: for TrainOptions::loss_scale.
  float scale() const { return state_.scale; }
  bool adapts() const { return options_.fixed == 0; }

  /// To be called with what FusedAdam::step returned, on every rank. Throws Error where an adapting scale would have to
  /// go below the minimum.
  void update(bool step_was_done) {
    if (!adapts()) return;
    auto& [scale, good_steps, hysteresis] = state_;
    if (step_was_done) {
      if (options_.consecutive_hysteresis) hysteresis = options_.hysteresis;
      if (++good_steps < options_.window) return;
      scale = std::min(2 * scale, largest);
      hysteresis = options_.hysteresis;
    } else if (hysteresis > 1) {
      --hysteresis;
    } else {
      if (scale <= options_.minimum)
        throw Error(text("the gradients overflow at the minimum of the loss scale, ", scale,
                         ": lower the learning rate, or train in bf16 or fp32"));
      scale /= 2;
    }
    good_steps = 0;
  }

  /// For CheckpointState::loss_scale; nothing where the scale is fixed.
  std::optional<LossScaleState> state() const { return adapts() ? std::optional{state_} : std::nullopt; }
  /// Goes on from there, if there is one and the scale adapts. Throws ConfigError for a state that no scaler has.
  void set_state(const std::optional<LossScaleState>& state) {
    if (!state || !adapts()) return;
    check_scale("saved", state->scale);
    if (state->good_steps < 0 || state->hysteresis < 1)
      throw ConfigError(
          text("a saved loss scale with ", state->good_steps, " good steps and a hysteresis of ", state->hysteresis));
    state_ = *state;
  }

 private:
  static constexpr float largest = 0x1p126f;  // its inverse is a normal float

  static void check_scale(std::string_view what, float scale) {
    int exponent = 0;
    if (!(scale > 0) || scale > largest || scale < 1 / largest || std::frexp(scale, &exponent) != 0.5f)
      throw ConfigError(text("loss scales are powers of two, so that gradients are divided by them exactly; the ", what,
                             " one is ", scale));
  }

  LossScaleOptions options_;
  LossScaleState state_;
};

}  // namespace zeropp
