// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
// A number is a function of (seed, purpose, layer, step, element index in the whole, unsharded tensor), never of a rank
// or of how many numbers were drawn before: initialisation and dropout do not change with the mesh.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace zeropp {

namespace detail {
inline constexpr int philox_rounds = 10;
inline constexpr std::uint64_t philox_a = 0xD2511F53, philox_b = 0xCD9E8D57;
constexpr std::array<std::uint32_t, 2> philox_next(std::array<std::uint32_t, 2> key) {
  return {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
}
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < philox_rounds; ++round) {
    const std::uint64_t a = philox_a * counter[0], b = philox_b * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = philox_next(key);
  }
  return counter;
}
}  // namespace detail

enum class RandomPurpose : std::uint32_t { initialisation = 1, dropout, stochastic_rounding, data, sampling, test };

/// A 64-bit FNV-1a hash; names of layers and parameters become numbers with it.
constexpr std::uint64_t hash_of(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

/// `x` with each bit of the result depending on all of its bits: the last step of SplitMix64 (Steele, Lea and Flood,
/// "Fast Splittable Pseudorandom Number Generators", 2014). Close hashes of FNV-1a become far ones with it.
constexpr std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// The random numbers of one (seed, purpose, layer, step). Copy freely; reading does not change it.
class Random {
 public:
  Random() = default;  ///< to be assigned
  constexpr Random(std::uint64_t seed, RandomPurpose purpose, std::uint64_t layer = 0, std::uint64_t step = 0) {
    // The layer and purpose go through Philox itself, so that every (seed, purpose, layer) has a key of its own.
    auto mixed = detail::philox({static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(layer >> 32),
                                 static_cast<std::uint32_t>(purpose), 0x7a65726fu},
                                {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
    key_ = {mixed[0], mixed[1]};
    step_ = {static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32)};
  }

  /// Four independent 32-bit numbers for the block `index`.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t index) const {
    return detail::philox(
        {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), step_[0], step_[1]}, key_);
  }
  constexpr std::uint32_t bits(std::uint64_t index) const { return block(index / 4)[index % 4]; }

  /// The same numbers in halves: element `index` has 16 bits of its own, eight elements share a block.
  constexpr std::uint16_t half(std::uint64_t index) const {
    return static_cast<std::uint16_t>(block(index / 8)[index % 8 / 2] >> index % 2 * 16);
  }
  constexpr std::array<std::uint32_t, 2> key() const { return key_; }    ///< for kernels/random_halves.hpp
  constexpr std::array<std::uint32_t, 2> step() const { return step_; }  ///< the upper half of its counters

  /// Uniform in [0, 1), 24 bits.
  constexpr float uniform(std::uint64_t index) const { return static_cast<float>(bits(index) >> 8) * 0x1p-24f; }

  /// Standard normal (Box–Muller in double, pairs of elements share one block of two 32-bit uniforms each).
  double normal(std::uint64_t index) const {
    auto b = block(index / 2);
    const double u = (b[0] + 0.5) * 0x1p-32, v = (b[1] + 0.5) * 0x1p-32;
    const double radius = std::sqrt(-2 * std::log(u)), angle = 2 * std::numbers::pi * v;
    return radius * (index % 2 ? std::sin(angle) : std::cos(angle));
  }

 private:
  std::array<std::uint32_t, 2> key_{};
  std::array<std::uint32_t, 2> step_{};
};

}  // namespace zeropp
