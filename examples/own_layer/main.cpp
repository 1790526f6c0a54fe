// SPDX-License-Identifier: Apache-2.0
// A layer and a training loop of one's own, sharded (docs/own_layer.md). Learns to answer with the token before.
#include <zeropp/zero.hpp>
using namespace zeropp;

/// y[t] = x[t] + gain · x[t − 1], channel by channel.
struct TokenShift {
  Parameter gain;
  TokenShift(const std::string& name, std::int64_t width) {
    gain = {.name = name + ".gain", .shape = {width}, .init = Init::normal(0.5f)};
  }
  auto parameters() { return std::array{&gain}; }

  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {  // [B, T, C]
    auto y = ctx.make_like(x);
    ctx.device.run({.name = "token shift"}, [&, w = ctx.value(gain)](auto& workers) {
      const auto width = x.extent(2), sequence = x.extent(1);
      workers.for_each(x.size(), 4096, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = begin; i < end; ++i)
          y.data()[i] = T(x.data()[i] + (i / width % sequence > 0 ? w[i % width] * x.data()[i - width] : 0));
      });
    });
    return Forward{y, ctx.save(x)};
  }
  template <class C, class T>
  auto backward(C& ctx, Tensor<T, 3> dy, Tensor<T, 3> x) {
    auto dx = ctx.make_like(dy);
    ctx.device.run({.name = "token shift backward"}, [&, w = ctx.value(gain), dw = ctx.gradient(gain)](auto& workers) {
      const auto width = x.extent(2), sequence = x.extent(1);
      workers.for_each(width, 16, [&](std::int64_t begin, std::int64_t end) {
        for (auto c = begin; c < end; ++c) {
          compute_t<T> sum = 0;
          for (auto i = c; i < x.size(); i += width) {
            dx.data()[i] = T(dy.data()[i] + (i / width % sequence + 1 < sequence ? w[c] * dy.data()[i + width] : 0));
            if (i / width % sequence > 0) sum += dy.data()[i] * x.data()[i - width];
          }
          dw[c] += sum;
        }
      });
    });
    return dx;
  }
};

struct Block : Sequential<Residual<LayerNorm, TokenShift>, Residual<LayerNorm, Mlp>> {
  Block(const std::string& h, std::int64_t width)
      : Sequential{{LayerNorm{h + "ln_1", width}, TokenShift{h + "shift", width}},
                   {LayerNorm{h + "ln_2", width}, Mlp{h + "mlp", width, 4 * width}}} {}
};
using Model = Sequential<GptEmbedding, Repeat<Block>, LayerNorm, LmHead>;

int main(int argc, char** argv) {
  return launch(argc, argv, [](World& world) {
    constexpr std::int64_t V = 64, C = 32, T = 16, rows = 8;  // vocabulary, width, sequence
    Cpu device;
    Model net{GptEmbedding{{.vocabulary = V, .width = C}},
              {{Block{"h.0.", C}, Block{"h.1.", C}}},
              LayerNorm{"ln_f", C},
              LmHead{"lm_head", V, C, {.tied_to = "wte.weight"}}};
    Sharded<Model, Stage::parameters> model{world, device, std::move(net)};
    FusedAdam adam{model};
    auto batch = Batch::on(device, rows, T);
    for (auto [step, rate] : Cosine{.peak = 1e-2f, .warmup = 10, .steps = 200}) {
      const Random random(1, RandomPurpose::data, std::uint64_t(world.rank), std::uint64_t(step));
      for (std::int64_t i = 0; i < rows * T; ++i) {
        batch.tokens.data()[i] = static_cast<std::int32_t>(random.bits(std::uint64_t(i)) % V);
        batch.labels.data()[i] = i % T ? batch.tokens.data()[i - 1] : -1;  // negative: no loss here
      }
      auto ctx = model.context({.loss_weight = 1.0 / ((T - 1) * rows * world.size), .labels = batch.labels});
      auto [loss, saved] = model.forward(ctx, batch.tokens);
      model.backward(ctx, 1.0f, std::move(saved));  // gathers, runs and releases; the loss is known from here on
      model.finish_gradients();
      adam.step(rate, clip_by_global_norm(model, 1.0f));
      const double mean = world.comm.sum(loss.mean()) / world.size;
      if (world.rank == 0 && step % 20 == 19) std::printf("step %3d  loss %.4f\n", static_cast<int>(step) + 1, mean);
    }
  });
}
