# SPDX-License-Identifier: Apache-2.0
"""A run's checkpoint, or an export of it, in the transformers library: the tokenizer cuts the held-out text alike, and
the loss of its tokens is the one that the run measured. transformers_loss.py FOLDER RUN SEQUENCE ROWS STEP"""
import json
import sys

import torch
import transformers

folder, run, sequence, rows, step = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
text = open(run + "/heldout.txt", encoding="utf-8", newline="").read()
ids = torch.tensor(tokenizer(text)["input_ids"])
assert tokenizer.decode(ids) == text, "the tokenizer does not give the text back"
total = count = 0
with torch.no_grad():
    for first in range(0, min(8 * rows * sequence, len(ids) - 1), sequence):  # 8 batches, as the run measures
        window = ids[first:first + sequence + 1]
        logits = model(window[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
        count += len(window) - 1
theirs = total / count
ours = [json.loads(line) for line in open(run + "/metrics.jsonl")][step - 1]["validation_loss"]
print(f"{len(ids)} tokens held out, vocabulary {model.config.vocab_size}: loss {ours:.9f} here, {theirs:.9f} in "
      f"transformers {transformers.__version__}, difference {abs(ours - theirs):.1e}")
assert abs(ours - theirs) < 1e-6 * max(1, ours), "the losses differ"
