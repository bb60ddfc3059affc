"""Batch norms of two gloo processes against torch's own over all of their images."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shared.training import distributed
from ssl_pretrain.methods.sync_batch_norm import GroupBatchNorm, synchronise
from tests.conftest import ENVIRONMENT, free_port

SHAPES = {"maps": (6, 5, 7, 4), "vectors": (6, 5)}


def norm_of(name: str) -> nn.Module:
    """Weights and statistics that are not those of the beginning."""
    random = torch.Generator().manual_seed(1)
    norm = nn.BatchNorm2d(5, momentum=0.2) if name == "maps" else nn.BatchNorm1d(5, momentum=0.2)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    return norm


def outcome(norm: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return what a pass forwards and backwards gives and leaves, and what a pass in eval mode gives then."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    gradients = {f"slope of {name}": p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "slope": x.grad, "later": norm.eval()(x).detach(), **gradients, **norm.state_dict()}


def images(name: str) -> tuple[Tensor, Tensor]:
    """With a mean that is large for their deviation, and what the loss weighs them with."""
    random = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(SHAPES[name], generator=random) for _ in range(2))
    x = 3 * x + 10
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x, weights


def as_a_rank(path: str) -> None:
    """Write the outcome for this rank's half of the images, in groups of two and of one."""
    world = distributed.start()
    found = {}
    for ranks in (8, 1):
        for name in SHAPES:
            x, weights = (each.chunk(2)[world.rank] for each in images(name))
            norm = synchronise(nn.Sequential(norm_of(name)), ranks)[0]
            assert isinstance(norm, GroupBatchNorm)
            found[f"{ranks} {name}"] = outcome(norm, x, weights)
    torch.save(found, path)
    distributed.stop()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    code = (
        "import sys; from tests.ssl_pretrain.methods.test_sync_batch_norm import as_a_rank; as_a_rank(sys.argv[1])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, folder / f"{rank}.pt"],
            env={**ENVIRONMENT, **address, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(250) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SHAPES)
def test_two_ranks_normalise_as_one_with_all_images(name: str, of_ranks: list):
    expected = outcome(norm_of(name), *images(name))
    for rank, found in enumerate(of_ranks):
        mine = found[f"8 {name}"]
        for key, value in expected.items():
            if key.startswith("slope of"):
                near(mine[key] + of_ranks[1 - rank][f"8 {name}"][key], value)
            else:
                near(mine[key], value if value.ndim < 2 else value.chunk(2)[rank])


@pytest.mark.parametrize("name", SHAPES)
def test_ranks_of_other_groups_see_only_their_own(name: str, of_ranks: list):
    for rank, found in enumerate(of_ranks):
        expected = outcome(norm_of(name), *(each.chunk(2)[rank] for each in images(name)))
        for key, value in expected.items():
            near(found[f"1 {name}"][key], value)


def near(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, expected.double().abs().max().item())
    assert (found.double() - expected.double()).abs().max() <= 1e-6 * scale


def test_ranks_of_a_node_stay_together(monkeypatch: pytest.MonkeyPatch):
    """The largest group that divides the ranks, at most what is asked for."""
    made: list[int] = []
    monkeypatch.setattr("torch.distributed.new_subgroups", lambda size: (made.append(size), None))
    for world, ranks in ((16, 8), (12, 8), (7, 4)):
        monkeypatch.setattr("torch.distributed.get_world_size", lambda world=world: world)
        synchronise(deepcopy(nn.Sequential(norm_of("maps"))), ranks)
    assert made == [8, 6, 1]
