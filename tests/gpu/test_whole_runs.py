"""Tiny whole runs on a GPU: every recipe, the detector, prediction; what a pretended GPU cannot show."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.signals import StopSignal
from shared.training.distributed import World, replicated
from shared.training.precision import autocast
from ssl_pretrain.data.crops import each_crop
from ssl_pretrain.data.views import Views
from ssl_pretrain.methods import Step
from ssl_pretrain.methods.sync_batch_norm import synchronise
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.state import PretrainingState
from ssl_pretrain.train import train, update
from tests.conftest import Command, free_port
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.conftest import tissue, write_shards

pytestmark = pytest.mark.gpu
WORLD = World(0, 0, 1, torch.device("cuda", 0))


@contextmanager
def waits_forbidden() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", [24, 16], tissue)


@pytest.mark.parametrize("options", [{}, {"compile": True}, {"checkpoint_activations": True}], ids=str)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_run_of_every_recipe(name: str, options: dict, shards: Path, tmp_path: Path):
    recipe = tiny.recipe(name, shards, tmp_path, **options)
    assert train(recipe, WORLD, StopSignal()) == 0
    lines = [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20 and losses[-1] < 2 * losses[0]


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_step_never_waits(name: str, tmp_path: Path):
    recipe = tiny.recipe(name, tmp_path, tmp_path)
    plan, method = BatchPlan.of(recipe, 1), recipe.method.build().cuda()
    views = Views(recipe.views, recipe.method.crops, (0.7, 0.6, 0.6), (0.2, 0.2, 0.2)).cuda()
    state = PretrainingState(method, recipe.optimiser.build(method), layout=None)  # type: ignore[arg-type]
    sizes = [crop.size for crop in each_crop(recipe.method.crops)]
    crops = [torch.zeros(plan.micro_batch, 3, size, size, dtype=torch.uint8).pin_memory() for size in sizes]
    for forbids in (False, True):  # the first steps choose kernels and make the optimiser's state
        for _ in range(3):
            with waits_forbidden() if forbids else nullcontext():
                update(plan, state, views, lambda: crops, WORLD)
            state.step += 1


@pytest.mark.parametrize("name", tiny.NAMES)
def test_losses_in_bfloat16_are_those_in_float32(name: str):
    torch.manual_seed(0)
    method = tiny.method(name).build().cuda()
    views = [torch.randn(8, 3, crop.size, crop.size, device="cuda") for crop in each_crop(method.config.crops)]
    losses = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(1)
        with autocast(torch.device("cuda"), precision):
            losses.append(deepcopy(method).loss(views, Step(0, 0, 160)).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Yield a process group of this process alone: NCCL refuses a second on the same GPU."""
    for variable, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(variable, value)
    dist.init_process_group("nccl", rank=0, world_size=1, device_id=WORLD.device)
    yield World(0, 0, 2, WORLD.device)  # two, so that modules are replicated
    dist.destroy_process_group()


def test_batch_norms_are_torchs_with_its_kernels(one_rank: World):
    """Forwards and backwards, in both layouts; and nothing waits."""
    for layout in (torch.contiguous_format, torch.channels_last):
        norm = nn.BatchNorm2d(16).cuda()
        ours = synchronise(nn.Sequential(deepcopy(norm)), 8)
        image = torch.randn(8, 16, 12, 12, device="cuda").to(memory_format=layout)
        found = []
        for network in (norm, ours):
            x = image.clone().requires_grad_()
            network(x).square().sum().backward()
            found.append([x.grad, *(p.grad for p in network.parameters()), *network.buffers()])
        for mine, torchs in zip(*reversed(found), strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)
        with waits_forbidden():
            ours(image).sum().backward()


def test_ranks_replicate_a_network(one_rank: World):
    network = replicated(nn.Linear(4, 2).cuda(), one_rank)
    network(torch.ones(3, 4, device="cuda")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("views", [1, 2])
def test_a_detector_in_bfloat16_finds_what_it_finds_in_float32(views: int):
    """Coordinates are computed in float32 in both."""
    torch.manual_seed(0)
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", classes=2, views=views)).cuda().eval()
    shape = (2, 3, 128, 128) if views == 1 else (2, views, 3, 128, 128)
    image = torch.rand(shape, device="cuda")
    found: list[Tensor] = []
    with torch.inference_mode():
        for precision in ("float32", "bfloat16"):
            with autocast(torch.device("cuda"), precision):
                found.append(detector(image).points_BN2)
    assert (found[0] - found[1]).abs().mean() < 0.5


def test_from_slides_to_cells(command: Command, tmp_path: Path):
    """The public commands on sample data, all on the GPU."""
    gpu = {"CUDA_VISIBLE_DEVICES": "0"}
    folder = tmp_path / "demo"
    weights, detector = folder / "mae.pth", folder / "detector.pth"
    mae = ("--out", weights)
    for module, *words in (
        ("shared.samples.sample_slides", folder),
        ("patch_extraction", "--wsi-dir", folder / "slides", "--out", folder / "shards"),
        (
            "ssl_pretrain",
            "mae_demo",
            "--shards",
            folder / "shards",
            *mae,
            "--max-steps",
            30,
            "--loader.decode",
            "gpu",
        ),
        ("finetune", "demo", "--data", folder / "tiles", "--init", weights, "--epochs", 2, "--out", detector),
        ("finetune.predict", detector, folder / "slides", "--out", folder / "cells"),
    ):
        done = command(module, *words, timeout=1200, **gpu)
        assert done.returncode == 0, done.stderr[-2000:]
    assert list((folder / "cells").rglob("*.geojson"))
