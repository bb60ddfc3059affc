"""Runs of some minutes in which every method is to learn something, however little, and not to collapse.

Images whose colours turn into each other from left to right, which crops of them betray; and patches harvested
from the demo's slides. No jitter. The heads are small, the schedules short: numbers of no recipe. DINO's ResNet
has another optimiser, too: with plain gradient descent its outputs become alike in so small a head without batch
norms, as they do in the official loop.

DINO's outputs become alike (loss and entropy: ln classes) wherever views of a patch have too little in common.
Say that a teacher at temperature T is off its centre by a little t, of which the views of an image share c. What
views can best foretell of its softmax is c t / T, for which a student at temperature S puts out c (S / T) t. So
differences grow if c > T / S, 0.4 as published, and die out otherwise. Fresh networks here have c = 0.2-0.8 on the
gradients but 0.02-0.3 on harvested patches with the recipes' views, which are small parts of much the same tissue.
There they get larger crops, no blur and a sharper teacher; and a warm-up, and a centre so fast that it is found
before all images are of one class.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from shared.shards.tar_reader import read_with_metadata
from shared.signals import StopSignal
from shared.training.distributed import World
from shared.weights import weights_file
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.shard_set import open_shards
from ssl_pretrain.inspection import nearest_neighbours
from ssl_pretrain.inspection.backbone_sources import LoadedBackbone, open_subject, untrained
from ssl_pretrain.inspection.feature_metrics import features_of
from ssl_pretrain.inspection.monitor import sample_patches
from ssl_pretrain.inspection.probe_patches import labelled_patches
from ssl_pretrain.optim.optimizers import AdamW
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.recipes import MAE_DEMO
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

# DINO on harvested patches: `DINO` with views that have more in common, and a sharper teacher.
ALIKE = DINO | {
    **{"global_scale": (0.5, 1.0), "local_scale": (0.25, 0.5), "blur": (0.0, 0.0, 0.0), "solarise": 0.0},
    **{"teacher_temperature": 0.02},
}
# Method, optimiser, and in how many cases a patch's neighbours tell more of it than chance would: which of three
# slides it is from, or whether more of its cells are positive than of most patches'.
DISTILLED = {
    "dino_resnet50": (
        ALIKE | {"image_size": 96, "local_size": 64},
        AdamW(base_lr=1.6e-2, weight_decay=0.04, clip=3.0, warmup_samples=100 * BATCH),
        {"positive": 0.7},
    ),
    "dino_vitb": (ALIKE, {"base_lr": 1e-2, "warmup_samples": 100 * BATCH}, {"slide": 0.6}),
}


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few hundred patches of the demo's slides, half as wide as the demo's."""
    demo = tmp_path_factory.mktemp("demo")
    for words in (
        ["shared.samples.sample_slides", "."],
        ["patch_extraction", "--wsi-dir", "slides", "--patch-size", "256", "--min-cells", "8"],
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=demo, env=ENVIRONMENT, check=True)
    return demo / "shards"


@torch.no_grad()
def features(path: Path, shards: Path) -> torch.Tensor:
    """Return unit vectors (64, D) that an exported trunk makes of whole patches."""
    exported = weights_file.read(path)
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
@pytest.mark.parametrize("name", DISTILLED)
def test_dino_distils_something_from_harvested_patches(name: str, harvested: Path, tmp_path: Path):
    """About 20 s of a core for the ViT, 70 s for the ResNet."""
    method, rates, tells = DISTILLED[name]
    recipe = learn(name, (method, rates, 0.8), harvested, tmp_path, steps=300)
    alike = math.log(recipe.method.output_dim)
    assert losses(recipe)[-16:].mean() < 0.7 * min(alike, losses(recipe)[:16].mean())
    divergence, entropy = logged(recipe, "divergence"), logged(recipe, "teacher_entropy")
    assert divergence[-16:].mean() < 0.6 * divergence[:16].mean()
    assert 0.1 * alike < entropy[-16:].mean() < 0.7 * alike  # neither one class for all images nor all alike
    subject = open_subject(recipe.out)
    told, before = (told_by_neighbours(network, harvested) for network in (subject, untrained(subject)))
    assert all(told[label] > max(least, before[label] + 0.1) for label, least in tells.items()), (told, before)


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


def learn(name: str, lesson: tuple, shards: Path, folder: Path, steps: int) -> PretrainingRecipe:
    """Train on so many batches; the loss must have fallen, and features must not have become alike.

    Returns the recipe.
    """
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
    return recipe


def losses(recipe: PretrainingRecipe) -> torch.Tensor:
    return logged(recipe, "loss")


def logged(recipe: PretrainingRecipe, name: str) -> torch.Tensor:
    """Read a number of each step."""
    lines = (recipe.run_dir / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)[name] for line in lines if f'"{name}"' in line])


def told_by_neighbours(subject: LoadedBackbone, shards: Path) -> dict[str, float]:
    """Balanced share of all patches whose neighbours have the same label; chance: slide 1/3, positive 1/2."""
    shard_set = open_shards(shards)
    sample = labelled_patches(shard_set, subject.crop, shard_set.samples)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (subject.mean, subject.std))
    features_ND = features_of(subject.trunk, sample.patch_BCHW, lambda patch: (patch.float() / 255 - mean) / std)
    facts = (
        facts for n in range(len(shard_set.shards)) for _, facts in read_with_metadata(shard_set.path(n), 4000)
    )
    share = np.array([positive_share(shards.with_name("slides_cells"), told) for told in facts])
    labels = {"slide": sample.slides, "positive": [str(many) for many in share > np.median(share)]}
    told = {name: nearest_neighbours.of_slides(features_ND, label) for name, label in labels.items()}
    return {name: accuracy.value for name, accuracy in told.items()}


def positive_share(cells: Path, facts: dict) -> float:
    """Of the cells that were put into a patch."""
    cell_N3 = np.loadtxt((cells / facts["slide"]).with_suffix(".csv"), delimiter=",", skiprows=1)
    corner = np.array([facts["x"], facts["y"]])
    inside_N2 = (cell_N3[:, :2] >= corner) & (
        cell_N3[:, :2] < corner + np.array([facts["width"], facts["height"]])
    )
    return float((cell_N3[inside_N2.all(axis=1), 2] == 2).mean())


def spread(feature_BD: torch.Tensor) -> tuple[float, float]:
    """Deviation, 1 where directions are all over, and RankMe (Garrido et al. 2023)."""
    deviation = feature_BD.std(dim=0).mean() * feature_BD.shape[1] ** 0.5
    share_D = F.normalize(torch.linalg.svdvals(feature_BD), p=1, dim=0)
    return deviation.item(), torch.exp(-(share_D * share_D.log()).sum()).item()
