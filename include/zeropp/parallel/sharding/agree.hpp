// SPDX-License-Identifier: Apache-2.0
// Before memory is taken, the ranks of a model compare what they have built: another model or other settings on one of
// them would otherwise end in a collective that never returns.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/layers/layer.hpp>

namespace zeropp::detail {

/// Throws CommError, on all ranks of `comm`, unless `what` is the same on all of them. `axis` names them in the
/// sentence: "", "tensor ". A collective.
inline void agree(const Comm& comm, std::string_view axis, const std::string& what) {
  const auto mine = static_cast<std::int64_t>(hash_of(what));
  std::vector<std::int64_t> hashes(static_cast<std::size_t>(comm.size()), mine);
  comm.host().all_gather(std::span<const std::int64_t>{&mine, 1}, std::span{hashes});
  for (std::size_t r = 1; r < hashes.size(); ++r)
    if (hashes[r] != hashes[0])
      throw CommError(text(axis, "rank ", r, " built another model than ", axis,
                           "rank 0 (parameters, shapes, stage, precision or seed differ); start all ranks with the "
                           "same program and settings"));
}

/// The same settings everywhere; tensor ranks cut the same parameters, stages of a pipeline have others. A collective.
template <class L>
void agree(L& layer, const Comm& comm, const Comm& tensor, const Comm& pipeline, const std::string& settings) {
  std::string names = settings, shapes = settings;
  visit_parameters(layer, [&](Parameter& p) {
    names += p.name + p.tied_to + "\n";
    shapes += p.name + shape_text(p.shape) + p.tied_to + "\n";
  });
  agree(comm, "", shapes);
  agree(tensor, "tensor ", names);
  agree(pipeline, "pipeline ", settings);
}

}  // namespace zeropp::detail
