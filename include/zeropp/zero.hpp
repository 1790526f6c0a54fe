// SPDX-License-Identifier: Apache-2.0
// All of zeropp, room by room.
#pragma once

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/base/version.hpp>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/device/tensor.hpp>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/thread.hpp>

#include <zeropp/layers/context.hpp>
#include <zeropp/layers/layer.hpp>
#include <zeropp/layers/loss.hpp>
#include <zeropp/layers/parameter.hpp>
#include <zeropp/layers/precision.hpp>
