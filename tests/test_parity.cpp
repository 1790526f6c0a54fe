// SPDX-License-Identifier: Apache-2.0
// Against PyTorch in fp32: the same weights, 20 steps of AdamW on a small GPT-2 (fixture: parity/make_fixture.py).
// Tolerance 1e-5 relative for losses and norms: the order of sums differs, and 20 steps carry the difference on.
#include <doctest/doctest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include <zeropp/comm/threads/threads.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

/// Reads the fixture's tensors; `[in, out]` of a Conv1D becomes the `[out, in]` of a Linear.
std::map<std::string, std::vector<float>> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file, "cannot open " << path);
  std::uint64_t size = 0;
  file.read(reinterpret_cast<char*>(&size), 8);
  std::string header(size, ' ');
  file.read(header.data(), static_cast<std::streamsize>(size));
  std::map<std::string, std::vector<float>> all;
  const auto json = nlohmann::json::parse(header);
  for (auto& [name, entry] : json.items()) {
    const std::size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    std::vector<float> stored((end - begin) / 4);
    file.seekg(static_cast<std::streamoff>(8 + size + begin));
    file.read(reinterpret_cast<char*>(stored.data()), static_cast<std::streamsize>(end - begin));
    REQUIRE(file);
    const bool conv = name.find("c_") != std::string::npos && entry["shape"].size() == 2;
    if (conv) {
      const std::size_t in = entry["shape"][0], out = entry["shape"][1];
      std::vector<float> turned(stored.size());
      for (std::size_t i = 0; i < in; ++i)
        for (std::size_t o = 0; o < out; ++o) turned[o * in + i] = stored[i * out + o];
      stored = std::move(turned);
    }
    all[name] = std::move(stored);
  }
  return all;
}

const std::string folder = ZEROPP_TEST_SOURCE "/parity/";

struct Fixture {
  nlohmann::json json = nlohmann::json::parse(std::ifstream(folder + "gpt2_small.json"));
  std::map<std::string, std::vector<float>> weights = read_tensors(folder + "gpt2_small.safetensors"),
                                            gradients = read_tensors(folder + "gpt2_small.grad.safetensors");
};

template <Stage S>
void compare(const Fixture& fixture, const Comm& comm) {
  const auto& f = fixture.json;
  const TinyConfig config{.vocabulary = f["vocabulary"],
                          .sequence = f["context"],
                          .width = f["width"],
                          .heads = f["heads"],
                          .layers = f["layers"],
                          .dropout = 0};
  Cpu device;
  Sharded<Plain, S> model{comm, device, Plain{config}};
  for (auto& unit : model.units()) {
    const auto held = unit.held();
    for (auto* p : unit.parameters()) {
      const auto& values = fixture.weights.at(p->name);
      REQUIRE(values.size() == static_cast<std::size_t>(p->size()));
      const auto range = held.clipped({p->offset, p->offset + p->size()});
      for (auto at = range.begin; at < range.end; ++at)
        unit.weights()[static_cast<std::size_t>(at - held.begin)] = values[static_cast<std::size_t>(at - p->offset)];
    }
  }
  FusedAdam adam{
      model, {.beta1 = f["beta1"], .beta2 = f["beta2"], .epsilon = f["epsilon"], .weight_decay = f["weight_decay"]}};
  const std::int64_t rows = f["batch"], begin = part_begin(rows, comm.rank(), comm.size()),
                     end = part_begin(rows, comm.rank() + 1, comm.size());
  auto batch = Batch::on(device, end - begin, config.sequence);
  for (std::size_t step = 0; step < f["steps"]; ++step) {
    for (auto row = begin; row < end; ++row)
      for (std::int64_t t = 0; t < config.sequence; ++t) {
        const auto at = (row - begin) * config.sequence + t;
        const auto& tokens = f["rows"][step][static_cast<std::size_t>(row)];
        batch.tokens.data()[at] = tokens[static_cast<std::size_t>(t)];
        batch.labels.data()[at] = tokens[static_cast<std::size_t>(t + 1)];
      }
    const double loss = model.train(batch, {.micro_batches = 2}).mean();
    const auto clip = clip_by_global_norm(model, f["clip"]);
    CAPTURE(step);
    CHECK(loss == doctest::Approx(f["losses"][step].get<double>()).epsilon(1e-5));
    CHECK(clip.norm() == doctest::Approx(f["norms"][step].get<double>()).epsilon(1e-5));
    if (step == 0)
      for (auto& unit : model.units())
        for (auto* p : unit.parameters()) {
          const auto& theirs = fixture.gradients.at(p->name);
          const auto range = unit.updated().clipped({p->offset, p->offset + p->size()});
          double error = 0, norm = 0;
          for (auto at = range.begin; at < range.end; ++at) {
            const double g = theirs[static_cast<std::size_t>(at - p->offset)];
            const double e = unit.gradients()[static_cast<std::size_t>(at - unit.updated().begin)] - g;
            error += e * e;
            norm += g * g;
          }
          CAPTURE(p->name);
          CHECK(std::sqrt(error) <= 2e-6 * std::sqrt(norm) + 1e-9);
        }
    adam.step(f["lr"], clip);
  }
}

}  // namespace

TEST_CASE("losses, gradient norms and first gradients are PyTorch's") {
  const Fixture fixture;
  compare<Stage::none>(fixture, Comm{});
  run_ranks(2, {.limit = std::chrono::seconds(20)}, [&](Comm comm) { compare<Stage::gradients>(fixture, comm); });
  run_ranks(3, {.limit = std::chrono::seconds(20)}, [&](Comm comm) { compare<Stage::parameters>(fixture, comm); });
}
