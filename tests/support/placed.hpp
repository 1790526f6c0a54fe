// SPDX-License-Identifier: Apache-2.0
// A tiny owner of memory: a layer with its weights and gradients in place, without Sharded. Works on the dry device.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/layers/context.hpp>

namespace test {

using namespace zeropp;

/// `noise` is added to the first weights (normal, with this deviation): ones and zeros would hide mistakes. Weights are
/// rounded to bf16 first where `rounded`, so that all precisions begin with the same numbers.
struct PlacedOptions {
  float noise = 0;
  bool rounded = false;
};

template <class L, Precision P = Fp32, Device D = Cpu>
class Placed {
 public:
  using Weight = typename P::Weight;
  using Gradient = typename P::Gradient;
  using Ctx = Context<D, P>;

  Placed(D& device, L layer, PlacedOptions options = {}) : layer_(std::move(layer)), device_(&device) {
    visit_parameters(layer_, [&](Parameter& p) {
      if (!p.tied_to.empty()) return;
      if (!by_name_.emplace(p.name, &p).second) throw std::logic_error("two parameters are called " + p.name);
      parameters_.push_back(&p);
      storage_.push_back(device.pool().take_persistent(static_cast<std::size_t>(p.size()) * sizeof(Weight), Purpose::weights));
      p.value = storage_.back().get();
      storage_.push_back(device.pool().take_persistent(static_cast<std::size_t>(p.size()) * sizeof(Gradient), Purpose::gradients));
      p.gradient = storage_.back().get();
      const Random random(1, RandomPurpose::initialisation, hash_of(p.name)),
          more(1, RandomPurpose::test, hash_of(p.name));
      device.run({.name = "initialise"}, [&](auto&) {
        for (std::int64_t i = 0; i < p.size(); ++i) {
          float w = p.init(random, i) + options.noise * static_cast<float>(more.normal(static_cast<std::uint64_t>(i)));
          value(p)[static_cast<std::size_t>(i)] =
              static_cast<Weight>(options.rounded ? static_cast<float>(bf16(w)) : w);
        }
      });
    });
    visit_parameters(layer_, [&](Parameter& p) {
      if (p.tied_to.empty()) return;
      p.value = by_name_.at(p.tied_to)->value;
      p.gradient = by_name_.at(p.tied_to)->gradient;
    });
    zero_gradients();
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  L& layer() { return layer_; }
  D& device() { return *device_; }
  Ctx context(RunState run = {}) { return Ctx(*device_, std::move(run)); }

  /// Those that own memory, in the order of the forward.
  const std::vector<Parameter*>& parameters() const { return parameters_; }
  Parameter& parameter(const std::string& name) { return *by_name_.at(name); }
  std::span<Weight> value(const Parameter& p) {
    return {static_cast<Weight*>(p.value), static_cast<std::size_t>(p.size())};
  }
  std::span<Gradient> gradient(const Parameter& p) {
    return {static_cast<Gradient*>(p.gradient), static_cast<std::size_t>(p.size())};
  }
  std::span<Weight> value(const std::string& name) { return value(parameter(name)); }
  std::span<Gradient> gradient(const std::string& name) { return gradient(parameter(name)); }
  void zero_gradients() {
    device_->run({.name = "zero"}, [&](auto&) {
      for (auto* p : parameters_) std::fill_n(gradient(*p).data(), p->size(), Gradient{});
    });
  }
  /// All gradients, one after the other: equal runs are equal strings.
  std::string gradient_bytes() {
    std::string bytes;
    for (auto* p : parameters_) {
      auto g = gradient(*p);
      bytes.append(reinterpret_cast<const char*>(g.data()), g.size_bytes());
    }
    return bytes;
  }

 private:
  L layer_;
  D* device_;
  std::vector<Parameter*> parameters_;
  std::map<std::string, Parameter*> by_name_;
  std::vector<Storage> storage_;
};

/// A tensor of normal numbers that depend on the seed and the place only.
template <class C, std::size_t R>
auto normal_tensor(C& ctx, std::array<std::int64_t, R> shape, std::uint64_t seed, double deviation = 1) {
  auto t = ctx.template make<static_cast<int>(R)>(shape);
  const Random random(seed, RandomPurpose::test);
  ctx.device.run({.name = "draw"}, [&](auto&) {
    for (std::int64_t i = 0; i < t.size(); ++i)
      t.data()[i] = static_cast<typename C::Activation>(
          static_cast<float>(deviation * random.normal(static_cast<std::uint64_t>(i))));
  });
  return t;
}

/// Tokens [B, T] below `vocabulary`; every `skip`-th is -1 if skip > 0.
template <class D>
Tensor<std::int32_t, 2> token_tensor(D& device, Extents<2> shape, std::int64_t vocabulary, std::uint64_t seed,
                                     std::int64_t skip = 0) {
  Tensor<std::int32_t, 2> t(device.pool(), shape, Purpose::buffers);
  const Random random(seed, RandomPurpose::test);
  device.run({.name = "draw"}, [&](auto&) {
    for (std::int64_t i = 0; i < t.size(); ++i)
      t.data()[i] = skip && i % skip == skip - 1
                        ? -1
                        : static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(i)) %
                                                    static_cast<std::uint32_t>(vocabulary));
  });
  return t;
}

template <class T, int R>
std::string bytes_of(const Tensor<T, R>& t) {
  return {reinterpret_cast<const char*>(t.data()), static_cast<std::size_t>(t.size()) * sizeof(T)};
}

}  // namespace test
