"""Memory and speed of training a detector: all of it, with LoRA, or with a frozen trunk."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.training.lora import freeze
from finetune.training.optimiser import create_optimiser
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.training.network_size import count_parameters
from shared.training.peak_memory import counted_memory
from shared.training.precision import autocast

RANK = 8  # of LoRA in the table
# Numbers that AdamW keeps of each trained weight, and its gradient.
STATE = 3
GIB = 2**30
WAYS: dict[str, Callable[[torch.nn.Module], None]] = {
    "all": lambda trunk: None,
    f"--lora {RANK}": lambda trunk: freeze(trunk, RANK),
    "--freeze-trunk": freeze,
}


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one way to train."""

    way: str
    trained_m: float
    """Parameters that are trained, millions."""
    memory_gib: float
    """Weights, gradients, moments of AdamW, and activations in bfloat16, counted without computing anything."""
    images_per_second: float
    """Speed of whole steps on this machine."""


def training_costs(config: DetectorConfig, crop: int, batch_size: int, seconds: float) -> list[TrainingCost]:
    """Measure every way that fits the trunk; convolutional ones have no LoRA.

    Args:
        config: The detector.
        crop: Side of the training crops, px.
        batch_size: Crops a step.
        seconds: Time spent measuring the speed of each; 0: none.
    """
    network, costs = DPAP2PNet(config).train(), []
    for way, prepare in WAYS.items():
        if "lora" in way and not hasattr(network.backbone.trunk, "blocks"):
            continue
        detector = copy.deepcopy(network)
        for trunk in detector.trunks():
            prepare(trunk)
        trained = count_parameters(detector, trained_only=True)
        memory = _memory(detector, crop, batch_size) + 4 * STATE * trained
        speed = _speed(detector, crop, batch_size, seconds) if seconds else 0.0
        costs.append(TrainingCost(way, trained / 1e6, memory / GIB, speed))
    return costs


def _memory(detector: DPAP2PNet, crop: int, batch_size: int) -> int:
    """Bytes of weights and, at the end of the forward pass, activations."""
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    with counted_memory() as memory:
        _loss(detector, torch.zeros(batch_size, 3, crop, crop))
    return weights + memory.peak


def _speed(detector: DPAP2PNet, crop: int, batch_size: int, seconds: float) -> float:
    """Images a second of forward pass, backward pass and update, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device)
    optimiser = create_optimiser(detector, weight_decay=0.0)
    image_BCHW, count, start = torch.zeros(batch_size, 3, crop, crop, device=device), 0, 0.0
    for warm in (False, True):
        start, count = time.perf_counter(), 0
        while count < 1 or (warm and time.perf_counter() - start < seconds):
            with autocast(device, training=True):
                loss = _loss(detector, image_BCHW)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            loss.item()  # waits for the GPU
            count += 1
    return count * batch_size / (time.perf_counter() - start)


def _loss(detector: DPAP2PNet, image_BCHW: Tensor) -> Tensor:
    """Return a scalar that depends on all outputs; matching costs little beside the network."""
    found = detector(image_BCHW)
    loss: Tensor = found.points_BN2.float().square().mean() + found.logits_BNC.float().square().mean()
    return loss
