// SPDX-License-Identifier: Apache-2.0
// A Sequential of nothing.
#include <zeropp/device/tensor.hpp>
#include <zeropp/layers/sequential.hpp>

#include "scale.hpp"

using namespace zeropp;

#ifdef REFUSED
// refused: Sequential needs at least one layer
auto model() { return Sequential<>{}; }
#else
auto model() { return Sequential<Scale>{Scale{}}; }
#endif
