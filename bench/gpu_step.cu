// SPDX-License-Identifier: Apache-2.0
// A training step of GPT-2 on GPUs, on random tokens: tokens a second, model FLOP/s, memory used and planned, and with
// --profile where the time goes. Prints one line of JSON.
//   gpu_step --model 124M --batch 64 --accumulate 2 --steps 20 --stage 0 [--recompute] [--recompute-gelu]
//   [--bf16-gradients] [--profile]
//   --recompute-blocks N                           the first N blocks keep only their input; --recompute: all do
//   --prefetch N                                   units gathered ahead at stage 3
//   --reduce-once                                  sum gradients over ranks once a step, not after each accumulated
//   pass
//   --no-graph                                     enqueue the kernels one by one
//   --trace FILE                                   one more step as a timeline of the GPU, for Perfetto
//   --warmup-rate N                                steps of a linear warm-up of the learning rate
//   --tokens train.bin --curve FILE [--weights W]  real tokens in order, from W on; the loss and norm of every step
//   --save-weights W                               writes the first weights and stops
//   --attention best|warpgroups|cudnn|tiles        which kernels attend
//   --any-order                                    cuDNN's backward may sum in any order
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <zeropp/app/data/tokens.hpp>
#include <zeropp/app/log/trace_json.hpp>
#include <zeropp/app/machine.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/train/checkpoint/weights.hpp>
#include <zeropp/zero.hpp>

using namespace zeropp;

namespace {

struct Settings {
  std::string model = "124M", tokens, curve, weights, save_weights, trace;
  std::int64_t layers = 12, heads = 12, width = 768, vocabulary = 50304, sequence = 1024;
  std::int64_t batch = 8, accumulate = 1, recompute_blocks = 0;
  std::optional<int> prefetch;
  int steps = 20, warmup = 4, warmup_rate = 0, stage = 0;
  bool recompute_gelu = false, profile = false, bf16_gradients = false, fp32 = false, any_order = false,
       reduce_once = false, graph = true;
  kernels::AttentionBackend attention = kernels::AttentionBackend::best;
};

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention>, Residual<LayerNorm, Mlp>> {
  Block(const Settings& s, const std::string& h)
      : Sequential{
            {LayerNorm{h + "ln_1", s.width}, CausalSelfAttention{h + "attn", {.width = s.width, .heads = s.heads}}},
            {LayerNorm{h + "ln_2", s.width},
             Mlp{h + "mlp", s.width, 4 * s.width, {.recompute_gelu = s.recompute_gelu}}}} {}
};
struct Gpt : Sequential<GptEmbedding, Repeat<Recompute<Block>>, LayerNorm, LmHead> {
  explicit Gpt(const Settings& s)
      : Sequential{GptEmbedding{{.vocabulary = s.vocabulary, .sequence = s.sequence, .width = s.width}},
                   {},
                   LayerNorm{"ln_f", s.width},
                   LmHead{"lm_head", s.vocabulary, s.width, {.tied_to = "wte.weight"}}} {
    for (std::int64_t i = 0; i < s.layers; ++i)
      std::get<1>(this->children).children.push_back({Block{s, text("h.", i, ".")}, i < s.recompute_blocks});
  }
};

template <class P>
void run(Stage stage, const Settings& s, const World& world) {
  const double started = steady_seconds();
  Cuda gpu{{.ordinal = world.local_rank % std::max(1, cuda_devices()),
            .profile = s.profile || !s.trace.empty(),
            .shared = world.size > cuda_devices()}};
  gpu.companion<kernels::CudaAttention>().options = {.backend = s.attention, .deterministic = !s.any_order};
  ShardedEngine<Gpt, P, Cuda> model{world.comm,
                                    gpu,
                                    Gpt{s},
                                    stage,
                                    {.reduction = s.reduce_once ? Reduction::once : Reduction::every_micro_batch,
                                     .prefetch = s.prefetch,
                                     .graph = s.graph}};
  if (!s.weights.empty()) load_weights(s.weights, model, {.naming = Naming::gpt2()});
  if (!s.save_weights.empty()) return save_weights(s.save_weights, model, {.naming = Naming::gpt2()});
  FusedAdam adam{model, {.weight_decay = 0.1f}};
  const auto rows = s.batch * s.accumulate;
  auto batch = Batch::on(gpu, rows, s.sequence);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows * s.sequence)), labels(tokens.size());
  const Random random(1, RandomPurpose::data, static_cast<std::uint64_t>(world.rank));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(random.bits(2 * i) % 50257);
    labels[i] = static_cast<std::int32_t>(random.bits(2 * i + 1) % 50257);
  }
  std::unique_ptr<FileTokens> file;
  if (!s.tokens.empty()) file = std::make_unique<FileTokens>(s.tokens, s.vocabulary);
  std::int64_t steps_done = 0;
  const auto read = [&] {  // rows one after the other, around and around
    const auto all = static_cast<std::int64_t>(tokens.size());
    std::vector<std::int32_t> window(tokens.size() + 1);
    file->read(steps_done * all % (file->size() - all), window);
    tokens.assign(window.begin(), window.end() - 1);
    labels.assign(window.begin() + 1, window.end());
  };
  double loss = 0, norm = 0;
  const auto step = [&] {
    if (file) read();
    ++steps_done;
    batch.fill(tokens, labels);
    const auto of_step = model.train(batch, {.micro_batches = s.accumulate});
    const auto clip = clip_by_global_norm(model, 1.0f);
    adam.step(3e-4f * std::min(1.0f, static_cast<float>(steps_done) / static_cast<float>(std::max(1, s.warmup_rate))),
              clip);
    loss = of_step.mean(), norm = clip.norm();
  };
  if (!s.curve.empty()) {
    std::ofstream out(s.curve);
    while (steps_done < s.steps) {
      step();
      out << steps_done << ' ' << fixed(loss, 6) << ' ' << fixed(norm, 6) << '\n';
    }
    return;
  }
  step();
  gpu.synchronize();
  const double first_step = steady_seconds() - started;
  for (int i = 1; i < s.warmup; ++i) step();
  if (s.profile) gpu.profile().take();
  std::vector<double> seconds;
  for (int i = 0; i < s.steps; ++i) {
    world.comm.barrier();
    gpu.synchronize();
    const double begin = steady_seconds();
    step();
    gpu.synchronize();
    world.comm.barrier();
    seconds.push_back(steady_seconds() - begin);
  }
  if (s.profile && world.rank == 0)
    for (const auto& line : gpu.profile().take())
      std::printf("%-28s %6d calls %9.3f ms a step %8.1f GB/s %8.1f TFLOP/s\n", line.name.c_str(), line.calls / s.steps,
                  line.milliseconds / s.steps, line.bytes / line.milliseconds / 1e6,
                  line.flops / line.milliseconds / 1e9);
  if (!s.trace.empty()) {
    gpu.profile().take();
    step();
    Trace trace;
    for (auto& span : gpu.profile().take_timeline()) trace.rank(world.rank).add(std::move(span));
    if (world.rank == 0) std::ofstream(s.trace) << trace_json(trace);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double step_tokens = static_cast<double>(rows * s.sequence) * world.size;
  const double flops = 6.0 * static_cast<double>(model.parameters()) +
                       6.0 * static_cast<double>(s.layers * s.sequence * s.width);  // a token, causal half counted
  if (world.rank == 0)
    std::printf(
        "{\"program\": \"zeropp\", \"gpu\": \"%s\", \"gpus\": %d, \"model\": \"%s\", \"stage\": %d, \"precision\": "
        "\"%s\", \"batch\": %lld, \"accumulate\": %lld, \"recompute\": \"%s\", \"ms\": %.2f, \"ms_best\": %.2f, "
        "\"tok_s\": %.0f, \"tflops\": %.1f, \"planned_gib\": %.3f, \"kept_gib\": %.3f, \"arena_gib\": %.3f, "
        "\"first_step_s\": %.2f, \"loss\": %.5f, \"norm\": %.5f}\n",
        gpu.properties().name.c_str(), world.size, s.model.c_str(), static_cast<int>(stage),
        std::string(P::name).c_str(), static_cast<long long>(s.batch), static_cast<long long>(s.accumulate),
        (s.recompute_blocks ? text(s.recompute_blocks, " blocks")
         : s.recompute_gelu ? "gelu"
                            : "")
            .c_str(),
        1e3 * median, 1e3 * seconds.front(), step_tokens / median, step_tokens / median * flops / 1e12,
        static_cast<double>(gpu.pool().planned()) / 0x1p30, static_cast<double>(gpu.pool().kept().total()) / 0x1p30,
        static_cast<double>(gpu.pool().arena()) / 0x1p30, first_step, loss, norm);
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  const auto number = [&](int i) { return i + 1 < argc ? std::atoll(argv[i + 1]) : 0; };
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--model") {
      const std::map<std::string, std::array<std::int64_t, 3>> sizes{
          {"124M", {12, 12, 768}}, {"355M", {24, 16, 1024}}, {"774M", {36, 20, 1280}}, {"1558M", {48, 25, 1600}}};
      s.model = i + 1 < argc ? argv[i + 1] : "";
      if (!sizes.contains(s.model)) return std::fprintf(stderr, "--model is 124M, 355M, 774M or 1558M\n"), 2;
      s.layers = sizes.at(s.model)[0], s.heads = sizes.at(s.model)[1], s.width = sizes.at(s.model)[2];
    }
    if (flag == "--batch") s.batch = number(i);
    if (flag == "--accumulate") s.accumulate = number(i);
    if (flag == "--sequence") s.sequence = number(i);
    if (flag == "--steps") s.steps = static_cast<int>(number(i));
    if (flag == "--warmup") s.warmup = static_cast<int>(number(i));
    if (flag == "--prefetch") s.prefetch = static_cast<int>(number(i));
    if (flag == "--warmup-rate") s.warmup_rate = static_cast<int>(number(i));
    if (flag == "--stage") s.stage = static_cast<int>(number(i));
    if (flag == "--attention") {
      const std::string name = i + 1 < argc ? argv[i + 1] : "";
      if (name == "cudnn") s.attention = kernels::AttentionBackend::cudnn;
      if (name == "tiles") s.attention = kernels::AttentionBackend::tiles;
      if (name == "warpgroups") s.attention = kernels::AttentionBackend::warpgroups;
    }
    const auto word = [&] { return std::string(i + 1 < argc ? argv[i + 1] : ""); };
    if (flag == "--tokens") s.tokens = word();
    if (flag == "--curve") s.curve = word();
    if (flag == "--weights") s.weights = word();
    if (flag == "--trace") s.trace = word();
    if (flag == "--save-weights") s.save_weights = word();
    if (flag == "--reduce-once") s.reduce_once = true;
    if (flag == "--any-order") s.any_order = true;
    if (flag == "--no-graph") s.graph = false;
    if (flag == "--recompute") s.recompute_blocks = std::numeric_limits<std::int64_t>::max();
    if (flag == "--recompute-blocks") s.recompute_blocks = number(i);
    if (flag == "--recompute-gelu") s.recompute_gelu = true;
    if (flag == "--bf16-gradients") s.bf16_gradients = true;
    if (flag == "--fp32") s.fp32 = true;
    if (flag == "--profile") s.profile = true;
  }
  s.recompute_blocks = std::min(s.recompute_blocks, s.layers);
  return launch(argc, argv, [&](World& world) {
    if (s.fp32) return run<Fp32>(Stage::none, s, world);
    if (s.bf16_gradients) return run<Bf16Gradients>(Stage::none, s, world);
    return run<Bf16>(static_cast<Stage>(std::clamp(s.stage, 0, 3)), s, world);
  });
}
