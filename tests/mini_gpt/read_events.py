# SPDX-License-Identifier: Apache-2.0
"""Reads the events of a run with TensorBoard's own package: read_events.py FOLDER STEPS. Exit code 77 without it."""
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    sys.exit(77)

folder, steps = sys.argv[1], int(sys.argv[2])
events = EventAccumulator(folder).Reload()
assert {"Train/Samples/train_loss", "Train/Samples/lr"} <= set(events.Tags()["scalars"]), events.Tags()
losses = events.Scalars("Train/Samples/train_loss")
assert len(losses) == steps, losses
assert all(0 < a.value < 100 and a.step < b.step for a, b in zip(losses, losses[1:])), losses
