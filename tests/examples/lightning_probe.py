"""Runs the Lightning example and writes down what its optimiser sees, into the file $PROBE."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location(
    "lightning_module", Path(__file__).parents[2] / "examples/lightning_module.py"
)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


class Probed(example.Tuning):
    """Keeps the norm of each step's gradients, before they are clipped, and each batch's place."""

    def on_train_start(self):
        self.norms, self.places = [], []

    def on_train_batch_start(self, batch, number):
        self.places.append((batch.epoch, batch.step, batch.micro_step))

    def on_before_optimizer_step(self, optimizer):
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))

    def on_train_end(self):
        if self.global_rank == 0:
            weights = {name: tensor.tolist() for name, tensor in self.state_dict().items()}
            found = {"norms": self.norms, "places": self.places, "weights": weights}
            Path(os.environ["PROBE"]).write_text(json.dumps(found))


if __name__ == "__main__":
    example.Tuning = Probed
    example.main()
