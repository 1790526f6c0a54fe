// SPDX-License-Identifier: Apache-2.0
// The parts of a Sequential around its Repeat, as types and as layers: where a pipeline cuts a model.
#pragma once

#include <cstddef>
#include <tuple>
#include <utility>

#include <zeropp/layers/layer.hpp>
#include <zeropp/layers/sequential.hpp>

namespace zeropp {

namespace detail {

template <class... Ls>
Sequential<Ls...> sequential_of(const Sequential<Ls...>&);
inline void sequential_of(...) {}

/// A Repeat, or what derives from one.
template <class L>
inline constexpr bool is_repeat = false;
template <ContainerOfUnits L>
inline constexpr bool is_repeat<L> = true;

template <std::size_t Begin, std::size_t... I, class... Ls>
auto slice_layers(std::tuple<Ls...>& layers, std::index_sequence<I...>) {
  return Sequential<std::tuple_element_t<Begin + I, std::tuple<Ls...>>...>{std::move(std::get<Begin + I>(layers))...};
}

/// Front, blocks and back of a Sequential around its only Repeat.
template <class S>
struct AroundRepeat;
template <class... Ls>
struct AroundRepeat<Sequential<Ls...>> {
  static constexpr std::size_t count = sizeof...(Ls);
  static constexpr std::size_t repeats = (std::size_t{is_repeat<Ls>} + ...);
  static constexpr std::size_t at = [] {
    std::size_t i = 0, found = 0;
    ((is_repeat<Ls> ? static_cast<void>(found = i++) : static_cast<void>(i++)), ...);
    return found;
  }();
  static constexpr bool valid = repeats == 1 && at > 0 && at + 1 < count;
  static auto front(std::tuple<Ls...>& layers) { return slice_layers<0>(layers, std::make_index_sequence<at>{}); }
  static auto back(std::tuple<Ls...>& layers) {
    return slice_layers<at + 1>(layers, std::make_index_sequence<count - at - 1>{});
  }
};

}  // namespace detail

}  // namespace zeropp
