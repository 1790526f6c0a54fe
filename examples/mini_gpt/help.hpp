// SPDX-License-Identifier: Apache-2.0
// The page of mini_gpt --help: options in groups, a text for each, examples, the environment and the exit codes.
#pragma once

#include <vector>

#include <CLI/CLI.hpp>

namespace mini_gpt {

struct HelpGroup {
  const char* name;
  struct Option {
    const char *flag, *words = nullptr;  ///< words where the option does not bring its own
  };
  std::vector<Option> options;
};

inline const std::vector<HelpGroup>& help_groups() {
  static const std::vector<HelpGroup> groups{
      {"Run",
       {{"--help"},
        {"--config"},
        {"--out", "folder of checkpoints, metrics.jsonl, loss.svg"},
        {"--resume"},
        {"--weights"},
        {"--seed", "of weights, data and samples"},
        {"--dry-run", "print the plan, open data and weights, and stop"},
        {"--doctor"},
        {"--simulate"},
        {"--trace", "with --simulate: its passes for Perfetto, or as a picture if it ends in .svg"}}},
      {"Data",
       {{"--data"}, {"--data-format"}, {"--tokenizer"}, {"--held-out"}, {"--vocab-size"}}},
      {"Model",
       {{"--model"},
        {"--n-layer", "blocks"},
        {"--n-head", "attention heads of a block"},
        {"--n-embd", "channels, a multiple of the heads"},
        {"--block-size", "tokens of a sequence"},
        {"--dropout", "probability in [0, 1)"}}},
      {"Training",
       {{"--steps", "optimizer steps of the whole run"},
        {"--batch-tokens"},
        {"--batch"},
        {"--micro-batches"},
        {"--lr", "highest learning rate"},
        {"--min-lr", "learning rate of the last step; if not said, a twentieth of --lr"},
        {"--lr-schedule", "after the warm-up: cosine, linear or constant"},
        {"--warmup-steps"},
        {"--weight-decay", "of matrices and embeddings"},
        {"--grad-clip", "highest norm of the gradients; 0: no limit"}}},
      {"Reports",
       {{"--eval-every", "steps between validation losses"},
        {"--save-every", "steps between checkpoints"},
        {"--keep", "newest checkpoints that stay"},
        {"--sample-every", "steps between samples; 0: only the last"},
        {"--sample"}}},
      {"Ranks and memory",
       {{"--ranks"},
        {"--threads", "CPU threads of a rank"},
        {"--zero"},
        {"--tp"},
        {"--sequence-parallel"},
        {"--pp"},
        {"--schedule", "order of a pipeline's passes"},
        {"--chunks"},
        {"--cp"},
        {"--context-attention", "how context ranks attend: ulysses or ring"},
        {"--recompute"},
        {"--recompute-blocks", "recompute only the first so many blocks"},
        {"--recompute-gelu"},
        {"--reduce-once"},
        {"--prefetch"},
        {"--bucket-size", "gradients reduced at a time"}}},
      {"Device", {{"--backend"}, {"--precision"}, {"--share-gpus"}, {"--no-graph"}}}};
  return groups;
}

inline constexpr auto help_end = R"(
Examples:
  mini_gpt --data book.txt --ranks 2                    train on a text, two thread ranks
  mini_gpt --data book.txt --ranks 2 --steps 1000       go on with the same run in ./out
  torchrun --nproc-per-node 4 --no-python mini_gpt --data train.bin --model 124M --zero 3 --out run1
  mini_gpt export run1 folder                           the newest checkpoint as transformers reads it
  mini_gpt --dry-run --model 1558M --ranks 8 --zero 3   the memory of each rank, to the byte

Environment:
  RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT            set by torchrun: ranks as processes
  ZEROPP_PORT, ZEROPP_PORT_OFFSET, ZEROPP_TOKEN         where these meet, and what keeps runs apart
  NO_COLOR, TERM=dumb                                   plain lines instead of a colored progress bar

Exit codes: 0 done, 1 failure, 2 wrong flags or files of settings, 3 out of memory, 4 data or checkpoint,
  5 communication, 129, 130 or 143 ended by a signal with a checkpoint saved; another signal ends at once.)";

/// Puts the options of `app` into groups, with texts. Throws CLI::OptionNotFound for one that is not there.
inline void arrange_help(CLI::App& app) {
  for (const auto& group : help_groups())
    for (const auto& option : group.options) {
      auto* found = app.get_option(option.flag)->group(group.name);
      if (option.words) found->description(option.words);
    }
  app.footer(help_end);
  app.get_formatter()->column_width(34);
}

}  // namespace mini_gpt
