// SPDX-License-Identifier: Apache-2.0
// The settings of a run of mini_gpt: by flags, or by a JSON file under DeepSpeed's keys. Flags win.
#pragma once

#include <optional>
#include <string>

#include <zeropp/app/config/settings.hpp>

#include "model.hpp"

namespace mini_gpt {

struct Settings : TrainSettings {
  ModelConfig model;
  std::string data, format = "auto", tokenizer, out = "out", resume = "auto", weights;
  std::string backend = "auto";  ///< "cpu" or "cuda" once parsed; and then `precision` is no longer "auto"
  std::string simulation, trace;
  std::int64_t batch_tokens = 0;  ///< of a step; 0: rows · block size
  std::int64_t eval_every = 100, save_every = 200, sample_every = 200, sample_tokens = 120, keep = 2;
  double held_out = 0.1;
  int threads = 1;
  bool dry_run = false, doctor = false, share_gpus = false;
  std::string config_text;  ///< the file as it came, for the checkpoint
  std::string kept_tokenizer;               ///< of the checkpoint that the run goes on from: see look_into_checkpoint
  std::optional<std::int64_t> kept_tokens;  ///< that its model knows; 0: all rows

  std::int64_t tokens() const { return rows * model.block_size; }
  /// The settings that must be the same on all ranks.
  SettingList compared() const;
  /// All settings of a run on so many ranks, for its plan.
  SettingList all(int world_size) const;
  /// The settings on so many ranks, which `source` started: with batch sizes that follow from a file's. Throws
  /// ConfigError for everything that can be refused before memory is taken.
  Settings on(int world_size, const std::string& source) const;

 private:
  void check(int world_size) const;
};

/// Reads flags, and the file named by --config. An exit code ends the program (0 help, 2 wrong flags); -1: go on.
int parse(int argc, char** argv, Settings& settings);

}  // namespace mini_gpt
