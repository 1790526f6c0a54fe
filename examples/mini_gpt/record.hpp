// SPDX-License-Identifier: Apache-2.0
// The files that a run of mini_gpt keeps in its checkpoints beside weights and states: training.json (all settings, and
// what the data were), config.json and tokenizer.json, which other libraries read; and how a run finds them again.
#pragma once

#include <string>
#include <vector>

#include <zeropp/app/data/corpus.hpp>
#include <zeropp/train/checkpoint/load_checkpoint.hpp>

#include "settings.hpp"

namespace mini_gpt {

/// Sizes of the model and the tokenizer from the files beside --weights. `said`: flags that the user gave; a size among
/// them that differs is refused with ConfigError.
void take_sizes_of_weights(Settings& s, const std::vector<std::string>& said);

/// Reads in the checkpoint that the run will go on from which tokenizer it has and how many tokens its model knows.
void look_into_checkpoint(Settings& s);

/// The tokenizer's size is the model's used vocabulary, unless weights or a checkpoint say another.
Settings fitted(Settings s, const Corpus& corpus);

/// training.json of a run on so many ranks.
std::string record_of(const Settings& s, int ranks, const Corpus& corpus);
/// Sentences on what differs between two of them. Throws DataError where it is the model.
std::vector<std::string> changes(const std::string& before, const std::string& now);

/// config.json and tokenizer.json, of a vocabulary that is not padded: a padded one is exported.
std::vector<SmallFile> files_for_others(const Settings& s, const Corpus& corpus);
/// Throws DataError where the checkpoint was trained with another tokenizer.
void expect_same_tokenizer(const CheckpointState& found, const Corpus& corpus);

/// mini_gpt export FROM TO [--n-head N]: returns the exit code.
int export_command(int argc, char** argv);

}  // namespace mini_gpt
