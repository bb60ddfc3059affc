"""What a run will take: beside the published estimates, and beside what a run really writes."""

from functools import partial
from pathlib import Path

import pytest
import torch

from ssl_pretrain import plan as bill
from ssl_pretrain.data.epoch_order import EpochPartition
from ssl_pretrain.plan import ClusterSpec, CostEstimate, sizes_of, speed_of
from ssl_pretrain.recipes import MAE_VITB, RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.state import PretrainingState
from tests.conftest import InProcess
from tests.ssl_pretrain.tiny import NAMES, recipe


@pytest.fixture
def printed(in_process: InProcess):
    """Run the command; returns exit code, stdout and stderr."""
    return partial(in_process, bill.main)


# Operations of an image, and images a second of an A100 as others report or estimate them.
@pytest.mark.parametrize(
    ("name", "gflop", "low", "high"),
    [
        ("mae_vitb", 58.8, 1800, 2400),
        ("moco_v2_resnet50", 32.5, 1750, 2050),
        ("swav_resnet50", 75.4, 740, 860),
        ("dino_resnet50", 100.7, 570, 670),
        ("dino_vitb", 436, 230, 270),
    ],
)
def test_estimated_speed(name: str, gflop: float, low: float, high: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bill, "flops_per_image", lambda _: 1e9 * gflop)
    assert low <= speed_of(RECIPES[name], ClusterSpec())[0] <= high


def test_hours_are_those_of_200_imagenet_epochs():
    node = CostEstimate(BatchPlan.of(MAE_VITB, 8), speed=2000.0)
    assert node.hours == pytest.approx(200 * 1_281_167 / 16_000 / 3600, rel=1e-4)  # 4.45
    assert node.gpu_hours == pytest.approx(8 * node.hours)
    assert node.step_seconds == pytest.approx(4096 / 16_000)
    assert CostEstimate(BatchPlan.of(MAE_VITB, 64), speed=2000.0).gpu_hours == pytest.approx(node.gpu_hours)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_files(name: str, tmp_path: Path):
    asked = recipe(name, tmp_path, tmp_path)
    plan, method = BatchPlan.of(asked, 1), asked.method.build()
    state = PretrainingState(
        method, asked.optimiser.build(method), EpochPartition(batch=1, ranks=1, workers=1, buffer=1)
    )
    for weight in method.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    state.optimiser.step()
    files = {"checkpoint": (method.state_dict(), state.optimiser.state_dict()), "weights": method.export()}
    for kind, content in files.items():
        torch.save(content, tmp_path / kind)
        size = (tmp_path / kind).stat().st_size
        told = getattr(sizes_of(plan.recipe), kind)
        assert 0.8 * size - 250_000 < told <= size, (kind, told, size)  # names take space, too


def test_everything_is_said(printed, shards: Path):
    words = ("mae_vitb", "--nodes", 2, "--gpus", 4, "--images-per-second", 100, "--loader.workers", 2)
    code, said, _ = printed(*words, "--shards", shards, "--batch-size", 32, "--samples-seen", 2_880_000_000)
    assert code == 0
    assert "batch   32 images = 8 rank(s) x 4 x 1 accumulated" in said
    assert "2,880,000,000 images = 90,000,000 steps" in said
    assert "time    1,000.0 hours on 8 GPU(s) = 8,000 GPU-hours; 0.04 s a step" in said
    assert "1.34 GB a checkpoint, every 15 min, 2 are kept; 0.34 GB of weights in mae.pth" in said
    assert f"{shards}: 2 with 40 patches of" in said
    assert "readers 8 rank(s) x 2 workers: too few patches: 1 batches an epoch for 2 workers" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--batch-size", 64), "too few patches, a batch has 64; harvest more slides"),
        (("--batch-size", 8), "enough; 8 read 2 shards, so that some share one"),
        (("--batch-size", 8, "--gpus", 1, "--loader.workers", 2), "enough, a shard for each of 2"),
    ],
)
def test_whether_the_shards_suffice(words, sentence: str, printed, shards: Path):
    told = ("--images-per-second", 100, "--loader.workers", 1, "--shards", shards, *words)
    assert sentence in printed("mae_demo", *told)[1]


def test_several_nodes_make_a_table(printed):
    code, said, _ = printed("moco_v2_resnet50", "--images-per-second", 1500, "--nodes", 1, 4, 64)
    assert code == 0
    rows = [line.split() for line in said.splitlines()[3:]]
    assert rows[1] == ["8", "32", "1", "0.0213", "5.93", "47"]
    assert rows[2] == ["32", "8", "1", "0.00533", "1.48", "47"]
    assert "512 GPUs: a batch of 256 cannot be shared evenly by 512 ranks" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mae",), "there is no recipe 'mae'; choose one of moco_v2_resnet50, "),
        (("--gpus", 3), "a batch of 4096 cannot be shared evenly by 3 ranks"),
        (("--nodes", 0), "--nodes 0 is out of range; give a number of at least 1"),
        (("--images-per-second", 0), "--images-per-second 0.0 is out of range"),
        (("--gpu", "V100"), "the speed of --gpu V100 is not known; measure it for --images-per-second"),
        (("--batch-size", 0), "--batch-size 0 is out of range"),
        (("mae_vitb", "--shards", "nowhere"), "there is no folder --shards nowhere; check the path"),
    ],
)
def test_wrong_input_is_one_sentence(words, sentence: str, printed):
    code, _, error = printed(*words) if "--gpus" not in words else printed(*words, "--images-per-second", 9)
    assert code == 2 and error.startswith(f"error: {sentence}") and error.count("\n") == 1
