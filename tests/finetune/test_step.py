"""One optimiser step: accumulated passes, the moving average, the learning rate."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.recipes import RECIPES, Recipe
from finetune.step import learning_rate, update
from finetune.training.criterion import Targets
from finetune.training.state import TrainingState, ema_of
from finetune.training.tile_loader import Batch
from shared.errors import UserError
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from tests.conftest import ENVIRONMENT, free_port

PLAIN = dataclasses.replace(RECIPES["dpa_p2pnet"], clip_norm=1e9, precision="float32")


def training(recipe: Recipe) -> TrainingState:
    """Make a small detector without what differs between a batch and its parts: dropout, batch norms."""
    torch.manual_seed(0)
    detector = DPAP2PNet(DetectorConfig(arch="resnet50", classes=2, dropout=0.0, channels=16, hidden=16))
    held = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    objective = recipe.criterion.objective(detector.config, 1)
    optimiser = torch.optim.SGD(detector.parameters(), 0.1)
    return TrainingState(detector, optimiser, held, objective, ema_of(detector, recipe.ema))


def batch(counts: tuple[int, ...], side: int = 64) -> Batch:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(counts), 3, side, side), dtype=torch.uint8, generator=random)
    cells = [Targets(torch.rand(n, 2, generator=random) * side, torch.arange(n) % 2) for n in counts]
    return Batch(images, cells)


@pytest.mark.parametrize("counts", [(3, 5, 0, 9), (0, 0, 0, 9), (1, 0, 0, 0)])
def test_accumulated_passes_are_one_batch(counts: tuple[int, ...]) -> None:
    """Whatever the counts of cells in the parts."""
    gradients, logged = [], []
    for passes in (1, 2):
        recipe = dataclasses.replace(PLAIN, accumulate=passes)
        state = training(recipe)
        logged.append(update(recipe, state, batch(counts), 0.0))
        gradients.append([p.grad for p in state.detector.parameters()])
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    assert logged[0]["regression"] > 0
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-3, atol=1e-6)


AS_A_RANK = """
import dataclasses, sys, torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from finetune.step import update
from finetune.training.tile_loader import Batch
from shared.training import distributed
from tests.finetune.test_step import COUNTS, PLAIN, batch, training

def counting(_, bucket):
    exchanged.append(bucket.buffer().numel())
    return allreduce_hook(None, bucket)

world, exchanged = distributed.start(), []
whole, recipe = batch(COUNTS), dataclasses.replace(PLAIN, accumulate=2)
mine = Batch(whole.image_BCHW[world.rank :: 2], whole.targets[world.rank :: 2])
state = training(recipe)
state.model = distributed.replicated(state.detector, world)
state.model.register_comm_hook(None, counting)
losses = update(recipe, state, mine, 0.1)
torch.save({"weights": state.detector.state_dict(), "losses": losses, "exchanged": sum(exchanged)},
           f"{sys.argv[1]}/{world.rank}.pt")
distributed.stop()
"""
# Of the images: each rank and each of its passes has another number of cells, one pass none.
COUNTS = (3, 5, 0, 9)


def test_two_ranks_with_two_passes_are_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Cells are counted over all ranks and passes, and gradients cross once."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", AS_A_RANK, str(tmp_path)], env={**ENVIRONMENT, **address, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    alone = training(PLAIN)
    before = {name: value.clone() for name, value in alone.detector.state_dict().items()}
    losses = update(PLAIN, alone, batch(COUNTS), 0.1)
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result["losses"] == pytest.approx(losses, rel=1e-4)
        assert result["exchanged"] == sum(parameter.numel() for parameter in alone.detector.parameters())
        for name, value in alone.detector.state_dict().items():
            moved = result["weights"][name] - before[name]
            torch.testing.assert_close(moved, value - before[name], rtol=1e-2, atol=1e-6)


def test_the_moving_average_is_what_is_scored() -> None:
    recipe = dataclasses.replace(PLAIN, ema=0.6)
    state = training(recipe)
    by_hand = state.detector.decoder.locate[0].bias.detach().clone()
    for state.step in range(3):
        update(recipe, state, batch((3, 4)), 0.1)
        keep = min(0.6, 1 - 1 / (state.step + 2))
        by_hand = keep * by_hand + (1 - keep) * state.detector.decoder.locate[0].bias.detach()
    assert not torch.allclose(by_hand, state.detector.decoder.locate[0].bias)
    torch.testing.assert_close(state.eval_model.decoder.locate[0].bias.detach(), by_hand)


def test_weights_are_left_alone_when_the_loss_is_not_finite() -> None:
    state = training(PLAIN)
    torch.nn.init.constant_(state.detector.decoder.classify[-1].bias, float("nan"))
    before = state.detector.decoder.locate[0].bias.detach().clone()
    with pytest.raises(UserError, match=r"not a number at step 1; .* lower --learning-rate"):
        update(PLAIN, state, batch((3, 4)), 0.1)
    assert torch.equal(state.detector.decoder.locate[0].bias, before)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    demo = RECIPES["demo"]
    rates = [learning_rate(demo, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([demo.learning_rate * step / 10 for step in range(1, 11)])
    assert rates[55] == pytest.approx(demo.learning_rate / 2, rel=1e-2)
    assert 0 < rates[-1] < demo.learning_rate / 1000
