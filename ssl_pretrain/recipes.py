"""Named recipes: every number of a pre-training run, with its source."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shared.command_line import check_range
from ssl_pretrain.methods import mae
from ssl_pretrain.optimisation import Config as Optimiser
from ssl_pretrain.shard_loader import Config as Loader
from ssl_pretrain.views import Config as Augmentation

# Lengths are counted in passes over ImageNet-1k, as the literature does, whatever the number of patches.
IMAGENET_EPOCH = 1_281_167


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pre-training run."""

    name: Annotated[str, tyro.conf.Fixed]
    """Of the recipe."""
    shards: Path = Path("shards")
    """Folder of shards, as `python -m patch_extraction` makes it."""
    run_dir: Path
    """Where checkpoints, metrics and pictures go; the same command goes on from what is there."""
    out: Path
    """Where the weights are copied to in the end."""
    method: mae.Config
    """Networks and loss."""
    views: Augmentation = field(default_factory=Augmentation)
    """What is varied in a view, beyond its crop."""
    normalisation: Literal["shards", "imagenet"] = "shards"
    """Whose channel means and deviations normalise the images: the shards' own or ImageNet's."""
    optimiser: Optimiser
    """Optimiser and learning rate."""
    batch_size: int
    """Images an optimiser step sees, on all ranks together."""
    micro_batch: int = 256
    """Most images a rank handles at once; the rest of its share is accumulated. Lower it if memory runs out."""
    samples_seen: int
    """Length of the run in images."""
    max_steps: int | None = None
    """Stop after this many steps, to try things out; the schedule stays that of the whole length."""
    loader: Loader = field(default_factory=Loader)
    """How the shards are read. Unless told, a resumed run keeps its number of workers."""
    verify: bool = True
    """Compare each shard's SHA-256 with the index before the first step."""
    seed: int = 0
    """Of everything random."""
    log_every: int = 10
    """Most steps between two looks at the loss and at the scheduler's wish to stop, each of which makes the GPU
    wait once; slow steps are looked at about every 10 s."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints, each with a picture."""


def check(recipe: Recipe) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: names the option and what it takes.
    """
    for option, value in (
        ("batch-size", recipe.batch_size),
        ("micro-batch", recipe.micro_batch),
        ("samples-seen", recipe.samples_seen),
        ("max-steps", recipe.max_steps),
        ("log-every", recipe.log_every),
        ("checkpoint-every", recipe.checkpoint_every),
    ):
        check_range(option, value, 1)
    check_range("seed", recipe.seed, 0, 2**32 - 1)
    for part in (recipe.method, recipe.views, recipe.optimiser, recipe.loader):
        part.check()


MAE_VITB = Recipe(
    name="mae_vitb",
    run_dir=Path("runs/mae_vitb"),
    out=Path("mae.pth"),
    # Mask, loss, crops and decoder: official PRETRAIN.md and the defaults of models_mae.py.
    method=mae.Config(
        arch="vit_base_patch16_224",
        image_size=224,
        crop_scale=(0.2, 1.0),
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_dim=512,
        decoder_depth=8,
        decoder_heads=16,
    ),
    views=Augmentation(horizontal_flip=0.5, vertical_flip=0.0),  # official: left-right only
    # Official PRETRAIN.md: blr 1.5e-4 (not main_pretrain.py's default of 1e-3), warm-up of 40 epochs,
    # weight decay 0.05; main_pretrain.py: betas 0.9 and 0.95, cosine to 0.
    optimiser=Optimiser(
        base_lr=1.5e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_samples=40 * IMAGENET_EPOCH,
        final_lr=0.0,
    ),
    batch_size=4096,  # official: 64 images on each of 64 GPUs
    samples_seen=200 * IMAGENET_EPOCH,  # "200 ImageNet epochs": Kang et al., CVPR 2023
)

# A few minutes on two CPU cores, to see the whole thing work; the numbers are ours. The loss falls to 0.8.
MAE_DEMO = Recipe(
    name="mae_demo",
    run_dir=Path("runs/mae_demo"),
    out=Path("mae_demo.pth"),
    method=mae.Config(
        arch="vit_tiny_patch16_224",
        image_size=96,
        crop_scale=(0.05, 0.3),  # a few cells fill a crop, so that they can be seen in its 36 tokens
        # So that the picture shows what was predicted: with normalised targets a token's true mean and deviation
        # would have to be lent to it.
        norm_pix_loss=False,
        decoder_dim=128,
        decoder_depth=2,
        decoder_heads=4,
    ),
    views=Augmentation(horizontal_flip=0.5, vertical_flip=0.5),
    optimiser=Optimiser(base_lr=4e-3, warmup_samples=2560),
    batch_size=64,
    samples_seen=25_600,
    checkpoint_every=200,
)

RECIPES = {recipe.name: recipe for recipe in (MAE_VITB, MAE_DEMO)}
