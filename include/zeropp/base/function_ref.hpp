// SPDX-License-Identifier: Apache-2.0
// A reference to something that can be called: what a function takes that calls it before it returns. Unlike a template
// parameter it lets the function compile once for all callers.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace zeropp {

template <class Signature>
class FunctionRef;

template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  /// `f` must outlive the reference.
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)  //
      FunctionRef(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Arguments... arguments) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Arguments>(arguments)...);
        }) {}

  Result operator()(Arguments... arguments) const { return call_(object_, std::forward<Arguments>(arguments)...); }

 private:
  void* object_;
  Result (*call_)(void*, Arguments...);
};

}  // namespace zeropp
