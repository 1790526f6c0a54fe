// SPDX-License-Identifier: Apache-2.0
// TensorParallel<L> and the rules of all layers.
#pragma once

#include <zeropp/parallel/tensor/rule.hpp>

#include <zeropp/parallel/tensor/attention.hpp>
#include <zeropp/parallel/tensor/containers.hpp>
#include <zeropp/parallel/tensor/dropout.hpp>
#include <zeropp/parallel/tensor/embedding.hpp>
#include <zeropp/parallel/tensor/group.hpp>
#include <zeropp/parallel/tensor/linear.hpp>
#include <zeropp/parallel/tensor/lm_head.hpp>
#include <zeropp/parallel/tensor/mlp.hpp>
#include <zeropp/parallel/tensor/per_position.hpp>
#include <zeropp/parallel/tensor/slice.hpp>
#include <zeropp/parallel/tensor/swiglu.hpp>
