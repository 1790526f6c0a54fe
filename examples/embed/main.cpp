// SPDX-License-Identifier: Apache-2.0
// The smallest trainer of one's own in a separate project: a layer, a loop, ZeRO-3. y = sign(x) is learned from
// samples.
#include <cstdio>
#include <zeropp/zero.hpp>

using namespace zeropp;

struct Net : Sequential<Linear, Gelu, Linear> {
  Net() : Sequential{Linear{"in", 4, 32, {.init_std = 0.3f}}, Gelu{}, Linear{"out", 32, 4, {.init_std = 0.3f}}} {}
};

int main(int argc, char** argv) {
  return launch(argc, argv, [](World& world) {
    Cpu device;
    Sharded<Net, Stage::parameters> model{world.comm, device, Net{}};
    FusedAdam adam{model, {.weight_decay = 0}};
    const std::int64_t rows = 64;
    double first = 0, loss = 0;
    for (auto [step, rate] : Cosine{.peak = 1e-2f, .warmup = 10, .steps = 200}) {
      const Random random(1, RandomPurpose::data, static_cast<std::uint64_t>(world.rank),
                          static_cast<std::uint64_t>(step));
      auto ctx = model.context();
      auto x = ctx.make<2>({rows, 4});
      for (std::int64_t i = 0; i < x.size(); ++i)
        x.data()[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
      auto [y, saved] = model.forward(ctx, x);
      auto dy = ctx.make_like(y);
      loss = 0;
      for (std::int64_t i = 0; i < y.size(); ++i) {
        const float error = y.data()[i] - (x.data()[i] > 0 ? 1.0f : -1.0f);
        loss += static_cast<double>(error * error);
        dy.data()[i] = 2 * error / static_cast<float>(y.size() * world.size);
      }
      model.backward(ctx, std::move(dy), std::move(saved));
      model.finish_gradients();
      adam.step(rate, clip_by_global_norm(model, 1.0f));
      loss = world.comm.sum(loss) / static_cast<double>(y.size() * world.size);
      if (step == 0) first = loss;
    }
    if (world.rank == 0) std::printf("squared error %.3f, after 200 steps %.3f\n", first, loss);
    return loss < first / 2 ? 0 : 1;
  });
}
