// SPDX-License-Identifier: Apache-2.0
// For tests of checkpoints: a folder that goes away, a small model that trains without kernels, and file systems that
// count, fail and die.
#pragma once

#include <array>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/train/checkpoint/checkpoint.hpp>

namespace test {

using namespace zeropp;
namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    auto name = (fs::temp_directory_path() / "zeropp-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

inline std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}
inline void put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
inline std::vector<std::string> names(const std::string& folder) {
  std::vector<std::string> out;
  for (auto& entry : fs::directory_iterator(folder)) out.push_back(entry.path().filename());
  std::sort(out.begin(), out.end());
  return out;
}

/// Only parameters; sizes that no number of ranks divides, one of a single element, one of none.
struct Weights {
  std::vector<Parameter> list;
  std::vector<Parameter*> parameters() {
    std::vector<Parameter*> all;
    for (auto& p : list) all.push_back(&p);
    return all;
  }
};
struct Layers {
  static constexpr LayerTraits traits{.container = true};
  Weights a, b, c;
  template <class F>
  void for_each_child(F&& f) {
    f(a), f(b), f(c);
  }
};
inline Layers layers() {
  const auto normal = Init::normal(0.5f);
  return {{{{"wte.weight", {7, 5}, normal}, {"empty", {0, 3}, normal}}},
          {{{"h.0.attn.c_attn.weight", {9, 3}, normal},
            {"h.0.attn.c_proj.weight", {3, 3}, normal},
            {"h.0.attn.c_proj.bias", {3}, normal}}},
          {{{"one", {1}, normal}}}};
}

/// An optimizer with the interface of FusedAdam whose step depends on all of its state.
template <class Model>
class Optimizer {
 public:
  using Precision = typename Model::Precision;
  using State = std::conditional_t<std::is_same_v<typename Precision::Weight, double>, double, float>;
  explicit Optimizer(Model& model) : model_(model) {
    for (auto& unit : model.units())
      for (auto* moments : {&first_, &second_}) moments->emplace_back(static_cast<std::size_t>(unit.updated().size()));
  }
  void step() {
    ++steps_;
    for (std::size_t u = 0; u < first_.size(); ++u) {
      auto& unit = model_.units()[u];
      auto weights = unit.weights().subspan(static_cast<std::size_t>(unit.updated().begin - unit.held().begin));
      for (std::size_t i = 0; i < first_[u].size(); ++i) {
        const auto at = unit.updated().begin + static_cast<std::int64_t>(i);
        if (at >= unit.size()) break;
        using Weight = typename Precision::Weight;
        State w;
        if constexpr (Precision::keeps_master)
          w = master_of_t<Weight>{weights[i], unit.masters()[i]}.master();
        else
          w = weights[i];
        const State g = w + static_cast<State>(0.01) * static_cast<State>(at % 7);
        first_[u][i] = static_cast<State>(0.9) * first_[u][i] + static_cast<State>(0.1) * g;
        second_[u][i] = static_cast<State>(0.95) * second_[u][i] + g * g;
        w -= static_cast<State>(0.03) * first_[u][i] / (1 + second_[u][i] * static_cast<State>(steps_));
        if constexpr (Precision::keeps_master) {
          const auto [weight, kept] = master_of_t<Weight>::from(w);
          weights[i] = weight, unit.masters()[i] = kept;
        } else {
          weights[i] = static_cast<Weight>(w);
        }
      }
    }
    model_.publish_weights();
    model_.set_step(model_.step() + 1);
  }
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }
  static constexpr std::array<std::string_view, 2> names{"first_moment", "second_moment"};
  std::string_view name() const { return "adam"; }
  std::span<const std::string_view> slots() const { return names; }
  std::span<State> slot(std::size_t s, std::size_t i) { return (s == 0 ? first_ : second_).at(i); }

 private:
  Model& model_;
  std::vector<std::vector<State>> first_, second_;
  std::int64_t steps_ = 0;
};

/// A rank's model and optimizer, at any stage.
template <class P>
struct RunOf {
  using Model = ShardedEngine<Layers, P>;
  Cpu device;
  Model model;
  Optimizer<Model> optimizer;

  RunOf(Stage stage, const Comm& comm, std::uint64_t seed = 1, Layers model_layers = layers())
      : model(comm, device, std::move(model_layers), stage, {.seed = seed}), optimizer(model) {}
  RunOf& train(int steps) {
    while (steps--) optimizer.step();
    return *this;
  }
  std::optional<Checkpoints::Resumed> resume(Checkpoints& store, const std::string& path = {}) {
    return store.resume(model, optimizer, path);
  }
  std::string save(Checkpoints& store, CheckpointState state) { return store.save(model, optimizer, state); }

  /// The bytes of all weights, kept masters and moments without padding, the same on every rank. A collective.
  std::string bits() {
    std::string out = text(model.step(), " ", optimizer.steps(), " ");
    for (std::size_t u = 0; u < model.units().size(); ++u) {
      auto& unit = model.units()[u];
      auto lease = unit.lease();
      add(out, unit.whole(), unit.size());
      if (!unit.masters().empty()) whole(out, unit.masters(), unit);
      whole(out, optimizer.slot(0, u), unit);
      whole(out, optimizer.slot(1, u), unit);
    }
    return out;
  }

 private:
  template <class T>
  static void add(std::string& out, std::span<T> values, std::int64_t count) {
    out.append(reinterpret_cast<const char*>(values.data()), static_cast<std::size_t>(count) * sizeof(T));
  }
  template <class T, class U>
  void whole(std::string& out, std::span<T> part, U& unit) {
    std::vector<T> all(static_cast<std::size_t>(unit.padded()));
    const auto mine = part.subspan(static_cast<std::size_t>(unit.shard().begin - unit.updated().begin),
                                   static_cast<std::size_t>(unit.shard().size()));
    model.comm().all_gather(std::span<const T>{mine}, std::span{all});
    add(out, std::span{all}, unit.size());
  }
};

template <Stage S, class P = Fp32>
struct Run : RunOf<P> {
  explicit Run(const Comm& comm, std::uint64_t seed = 1, Layers model_layers = layers())
      : RunOf<P>(S, comm, seed, std::move(model_layers)) {}
};

/// Calls the n-th system call (from 0) something else than it is.
class FaultyFileSystem : public FileSystem {
 public:
  enum class Fault { none, error, kill };
  Fault fault = Fault::none;
  long at = -1;
  int error = 0;
  std::string only = {};              ///< count calls of this name only; empty: all
  std::size_t longest = SIZE_MAX;     ///< reads and writes are cut to so many bytes
  bool interrupted = false;           ///< every second call fails with EINTR
  std::vector<std::string> log = {};  ///< "call path"

 protected:
  long intercept(const SystemCall& call, const Run& run) override {
    if (interrupted && (odd_ = !odd_) && call.name != "close") {
      errno = EINTR;
      return -1;
    }
    if (only.empty() || call.name == only) {
      if (static_cast<long>(log.size()) == at) {
        if (fault == Fault::kill) ::raise(SIGKILL);
        if (fault == Fault::error) {
          log.push_back("failed");
          errno = error;
          return -1;
        }
      }
      log.push_back(text(call.name, " ", call.path));
    }
    return run(std::min(call.bytes, longest));
  }

 private:
  bool odd_ = false;
};

template <class Body>
std::string sentence_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}
inline bool contains(const std::string& where, const std::string& what) {
  return where.find(what) != std::string::npos;
}

}  // namespace test
