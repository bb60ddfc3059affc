"""`python -m tests.benchmarks.training_step`: a training step on a CPU as it is, against the same written plainly.

Plainly: float32, weights in torch's usual layout, AdamW without its fused kernel. The first row differs in the
layout and the optimiser alone, so that the results are the same but for rounding; the second is in bfloat16 as
well, where the processor computes in it. Processor time of the whole process, so other jobs matter little.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from finetune.recipes import DPA_P2PNET
from finetune.step import update
from finetune.training.criterion import Targets
from finetune.training.initialisation import pretrained_batch_norms
from finetune.training.state import TrainingState
from finetune.training.tile_loader import Batch
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.training.precision import processor_computes_bfloat16
from tests.benchmarks.measuring import in_turn, write

CROPS, SIDE, CELLS = 4, 256, 150
OUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Time the steps in turn, print the ratios, write the CSV."""
    works = {"plain": step(fast=False, precision="float32"), "float32": step(fast=True, precision="float32")}
    if processor_computes_bfloat16():
        works["bfloat16"] = step(fast=True, precision="bfloat16")
    losses = {name: work() for name, work in works.items()}  # of the first step: all start from equal weights
    seconds = in_turn(works, repeats=5, clock=time.process_time)
    write(
        OUT,
        [
            {
                "step": name,
                "crops": f"{CROPS} x {SIDE} px",
                "plain_cpu_s": round(seconds["plain"], 2),
                "cpu_s": round(seconds[name], 2),
                "ratio": round(seconds["plain"] / seconds[name], 2),
                "loss_differs_by": f"{abs(losses[name] / losses['plain'] - 1):.1e}",
            }
            for name in list(works)[1:]
        ],
    )


def step(fast: bool, precision: str) -> Callable[[], float]:
    """Make a step of the default recipe with ResNet-50 whose batch norms are frozen; returns the loss."""
    torch.manual_seed(0)
    detector = DPAP2PNet(DetectorConfig(classes=3, interval=8, dropout=0.0))
    if fast:
        detector.to(memory_format=torch.channels_last)
    frozen = pretrained_batch_norms(detector.backbone.trunk, detector.backbone.trunk.state_dict())
    recipe = dataclasses.replace(DPA_P2PNET, precision=precision)
    optimiser = torch.optim.AdamW(detector.parameters(), weight_decay=recipe.weight_decay, fused=fast)
    training = TrainingState(detector, optimiser, frozen, recipe.criterion.objective(detector.config, 1))
    batch = Batch(
        torch.randint(0, 256, (CROPS, 3, SIDE, SIDE), dtype=torch.uint8),
        [Targets(torch.rand(CELLS, 2) * SIDE, torch.arange(CELLS) % 3) for _ in range(CROPS)],
    )
    return lambda: update(recipe, training, batch, recipe.learning_rate)["loss"]


if __name__ == "__main__":
    main()
