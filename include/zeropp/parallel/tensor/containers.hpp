// SPDX-License-Identifier: Apache-2.0
// Containers keep their structure, so that `Sharded` finds the same units: each child becomes its TensorParallel.
#pragma once

#include <tuple>
#include <utility>

#include <zeropp/layers/recompute.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/parallel/tensor/rule.hpp>

namespace zeropp {

template <class... Ls>
struct TensorParallel<Sequential<Ls...>, SplitBy::none> : Sequential<TensorParallel<Ls>...> {
  TensorParallel(const TensorOptions& o, Sequential<Ls...> whole)
      : TensorParallel(o, whole, std::index_sequence_for<Ls...>{}) {}

 private:
  template <std::size_t... I>
  TensorParallel(const TensorOptions& o, Sequential<Ls...>& whole, std::index_sequence<I...>)
      : Sequential<TensorParallel<Ls>...>(TensorParallel<Ls>(o, std::move(std::get<I>(whole.children)))...) {}
};

template <class L>
struct TensorParallel<Repeat<L>, SplitBy::none> : Repeat<TensorParallel<L>> {
  TensorParallel(const TensorOptions& o, Repeat<L> whole) {
    this->children.reserve(whole.children.size());
    for (auto& child : whole.children) this->children.emplace_back(o, std::move(child));
  }
};

template <class... Ls>
struct TensorParallel<Residual<Ls...>, SplitBy::none> : Residual<TensorParallel<Ls>...> {
  TensorParallel(const TensorOptions& o, Residual<Ls...> whole)
      : TensorParallel(o, whole, std::index_sequence_for<Ls...>{}) {}

 private:
  template <std::size_t... I>
  TensorParallel(const TensorOptions& o, Residual<Ls...>& whole, std::index_sequence<I...>)
      : Residual<TensorParallel<Ls>...>(TensorParallel<Ls>(o, std::move(child<I>(whole.inner)))...) {}
  template <std::size_t I, class Inner>
  static auto& child(Inner& inner) {
    if constexpr (sizeof...(Ls) == 1)
      return inner;
    else
      return std::get<I>(inner.children);
  }
};

template <class L>
struct TensorParallel<Recompute<L>, SplitBy::none> : Recompute<TensorParallel<L>> {
  TensorParallel(const TensorOptions& o, Recompute<L> whole)
      : Recompute<TensorParallel<L>>{TensorParallel<L>(o, std::move(whole.inner)), whole.active} {}
};

namespace detail {
// The container that a named struct derives from.
template <class... Ls>
Sequential<Ls...> container_of(const Sequential<Ls...>*);
template <class L>
Repeat<L> container_of(const Repeat<L>*);
template <class... Ls>
Residual<Ls...> container_of(const Residual<Ls...>*);
template <class L>
Recompute<L> container_of(const Recompute<L>*);
template <class L>
using ContainerOf = decltype(container_of(static_cast<const L*>(nullptr)));
}  // namespace detail

/// struct Block : Sequential<...>, and the like: what its constructor built is what is shared.
template <class L>
requires(!PerPosition<L> && requires { typename detail::ContainerOf<L>; })  //
    struct TensorParallel<L, SplitBy::none> : TensorParallel<detail::ContainerOf<L>> {
  TensorParallel(const TensorOptions& o, L whole) : TensorParallel<detail::ContainerOf<L>>(o, std::move(whole)) {}
};

}  // namespace zeropp
