"""Runs of some minutes in which every method is to learn something, however little, and not to collapse.

Images whose colours turn into each other from left to right, which crops of them betray; and patches harvested
from the demo's slides. No jitter. The heads are small, the schedules short: numbers of no recipe. DINO's ResNet
has another optimiser, too: with plain gradient descent its outputs become alike in so small a head without batch
norms, as they do in the official loop.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from shared import weights
from shared.distributed import World
from shared.stop_signal import StopSignal
from ssl_pretrain.crops import Crop
from ssl_pretrain.monitors import sample_patches
from ssl_pretrain.optimisation import AdamW
from ssl_pretrain.recipe import Recipe
from ssl_pretrain.recipes import MAE_DEMO
from ssl_pretrain.shards import open_shards
from ssl_pretrain.train import train
from tests.conftest import ENVIRONMENT
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.conftest import gradient, write_shards
from tests.ssl_pretrain.stub import changed

STEPS, BATCH = 120, 16
DINO = {
    **{"hidden_dim": 64, "bottleneck_dim": 32, "output_dim": 64, "frozen_samples": 0, "temperature_samples": 0},
    **{"teacher_temperature": 0.04, "momentum": 0.99, "centre_momentum": 0.5},
}
MOCO = {"image_size": 64, "key_group": 8, "hidden_dim": 64, "dim": 32, "queue_length": 64, "momentum": 0.99}
# Method, learning rate or optimiser, by which factor the loss falls from the second 16 steps (with a full queue)
# to the last.
LESSONS = {
    "moco_v2_resnet50": (MOCO, {"base_lr": 0.5}, 0.9),
    "swav_resnet50": ({}, {"base_lr": 2.0, "warmup_lr": 0.0}, 0.9),
    "dino_resnet50": (DINO, AdamW(base_lr=3e-3, weight_decay=0.04, clip=3.0, warmup_samples=16), 0.95),
    "dino_vitb": (DINO, {"base_lr": 1e-2}, 0.95),
}


# The same on harvested patches.
TISSUE = {
    "moco_v2_resnet50": (MOCO | {"crop_scale": (0.2, 1.0)}, {"base_lr": 0.5}, 0.9),
    "swav_resnet50": LESSONS["swav_resnet50"],
}


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few hundred patches of the demo's slides, half as wide as the demo's."""
    demo = tmp_path_factory.mktemp("demo")
    for words in (
        ["shared.sample_slides", "."],
        ["patch_extraction", "--wsi-dir", "slides", "--patch-size", "256", "--min-cells", "8"],
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=demo, env=ENVIRONMENT, check=True)
    return demo / "shards"


@torch.no_grad()
def features(path: Path, shards: Path) -> torch.Tensor:
    """Unit vectors (64, D) that an exported trunk makes of whole patches."""
    exported = weights.read(path)
    size = exported.metadata["image_size"]
    trunk = timm.create_model(
        exported.arch, num_classes=0, **({"img_size": size} if "vit" in exported.arch else {})
    )
    trunk.load_state_dict(exported.tensors, strict=True)
    patch_BCHW = sample_patches(open_shards(shards), Crop(size=size, scale=(1, 1)), 64).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (exported.mean, exported.std))
    return F.normalize(trunk.eval()((patch_BCHW - mean) / std), dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSONS)
def test_loss_falls_and_features_stay_apart(name: str, tmp_path: Path):
    learn(name, LESSONS[name], write_shards(tmp_path / "shards", [64, 64], gradient), tmp_path, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TISSUE)
def test_the_same_on_harvested_patches(name: str, harvested: Path, tmp_path: Path):
    learn(name, TISSUE[name], harvested, tmp_path, steps=300)


@pytest.mark.slow
def test_the_demos_recipe_learns_to_complete_harvested_patches(harvested: Path, tmp_path: Path):
    recipe = changed(MAE_DEMO, shards=harvested, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    assert train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal()) == 0
    loss = losses(recipe)
    assert loss[:16].mean() > 0.95 and loss[-16:].mean() < 0.85
    # Only attention tells the class token of an image, so little of it differs; that must not be one direction.
    feature_BD = features(recipe.out, harvested)
    _, rank = spread(feature_BD - feature_BD.mean(dim=0))
    assert rank > 3


def learn(name: str, lesson: tuple, shards: Path, folder: Path, steps: int) -> None:
    """Train on so many batches; the loss must have fallen, and features must not have become alike."""
    method, rates, factor = lesson
    recipe = tiny.recipe(name, shards, folder, batch_size=BATCH, micro_batch=BATCH, samples_seen=BATCH * steps)
    recipe = changed(
        recipe,
        method=changed(recipe.method, **method),
        optimiser=rates if isinstance(rates, AdamW) else changed(recipe.optimiser, **rates),
        views=changed(recipe.views, jitter=0.0, grayscale=0.0),
    )
    assert train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal()) == 0
    loss = losses(recipe)
    assert loss[-16:].mean() < factor * loss[16:32].mean()
    deviation, rank = spread(features(recipe.out, shards))
    assert deviation > 0.2 and rank > 3


def losses(recipe: Recipe) -> torch.Tensor:
    lines = (recipe.run_dir / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines if '"loss"' in line])


def spread(feature_BD: torch.Tensor) -> tuple[float, float]:
    """Deviation, 1 where directions are all over, and RankMe (Garrido et al. 2023)."""
    deviation = feature_BD.std(dim=0).mean() * feature_BD.shape[1] ** 0.5
    share_D = F.normalize(torch.linalg.svdvals(feature_BD), p=1, dim=0)
    return deviation.item(), torch.exp(-(share_D * share_D.log()).sum()).item()
