"""Named recipes: every number of a fine-tuning run, with its source."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from finetune.datasets import DataOptions
from finetune.training.augment import AugmentConfig
from finetune.training.criterion import CriterionConfig
from shared.cli import check_range
from shared.errors import UserError
from shared.model.multi_fov import Upsampling
from shared.training.precision import Precision
from shared.weights.weights_file import check_destination


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning run."""

    name: Annotated[str, tyro.conf.Fixed] = "dpa_p2pnet"
    """Of the recipe."""
    init: str = "imagenet"
    """Weights of the trunk: a file (of ssl_pretrain or of another project), imagenet (timm's hub) or random."""
    arch: str | None = None
    """Trunk as timm names it, where the weights do not say it (resnet50, vit_base_patch16_224, ...)."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions()
    """The annotated data."""
    out: Path = Path("detector.pth")
    """Where the best detector is copied at the end."""
    run_dir: Path = Path("runs/finetune")
    """Checkpoints, curves and pictures; the same folder resumes the run."""
    interval: int | None = None
    """Px between proposals; default 8 at 0.4 um/px and coarser, else 16 (paper: 8 on CoNSeP, 16 at 40x)."""
    multi_scale: bool = True
    """Decode every proposal from all levels P2..P6 (paper, equation 1); off: P2PNet's single-level heads."""
    deformable: bool = True
    """Deform the proposals before decoding (paper, Figure 1)."""
    summed: bool = False
    """With `no-multi-scale`: add all levels at stride 16 before decoding, as E2E does (paper, Table 3)."""
    refinements: int = 0
    """With `no-deformable`: decode again so many times from where the last decoding ended (paper's ablation)."""
    views: int = 1
    """Concentric fields of view (the paper's K): 2 wants an image of twice the width and height beside each."""
    upsampling: Upsampling = "transposed"
    """How feature maps of wider views are enlarged: transposed (learnt) or bilinear (paper, Table 4)."""
    channels: int = 256
    """Channels of the feature pyramid (authors' public code)."""
    hidden: int = 256
    """Hidden width of the MLPs (authors' public code; the paper's parameter counts need it)."""
    epochs: int = 200
    """Passes over the training tiles (authors' public code)."""
    batch_size: int = 4
    """Tiles a step over all ranks (authors' public code)."""
    accumulate: int = 1
    """Passes that a rank's share of the batch is cut into, if memory runs out."""
    ema: float = 0.0
    """Share of itself that a moving average of the weights keeps at a step, e.g. 0.99; 0: no average."""
    learning_rate: float = 1e-4
    """AdamW (authors' public code)."""
    weight_decay: float = 1e-4
    """AdamW (paper, Implementation Details)."""
    precision: Precision = "auto"
    """Of convolutions and matrix products in training: float32, bfloat16, or auto: bfloat16 on a GPU."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the run: to zero along a cosine, or constant (authors' public code)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    clip_norm: float = 0.1
    """Largest gradient norm (authors' public code)."""
    evaluate_every: int = 5
    """Epochs between scores on the validation tiles."""
    checkpoint_every: int = 5
    """Epochs between checkpoints."""
    max_steps: int | None = None
    """Stop after so many steps, to try things out; the same command without it goes on from there."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""
    workers: int = 2
    """Loader processes per rank."""
    augment: AugmentConfig = AugmentConfig()
    """Random scaling, shifting, flipping, staining."""
    criterion: CriterionConfig = CriterionConfig()
    """The loss."""


def check(recipe: Recipe) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: names the option and what it takes.
    """
    for option, value, least in (
        ("interval", recipe.interval, 1),
        ("refinements", recipe.refinements, 0),
        ("views", recipe.views, 1),
        ("channels", recipe.channels, 1),
        ("hidden", recipe.hidden, 1),
        ("epochs", recipe.epochs, 0),
        ("batch-size", recipe.batch_size, 1),
        ("accumulate", recipe.accumulate, 1),
        ("learning-rate", recipe.learning_rate, 0.0),
        ("weight-decay", recipe.weight_decay, 0.0),
        ("warmup-steps", recipe.warmup_steps, 0),
        ("clip-norm", recipe.clip_norm, 1e-9),
        ("evaluate-every", recipe.evaluate_every, 1),
        ("checkpoint-every", recipe.checkpoint_every, 1),
        ("max-steps", recipe.max_steps, 0),
        ("workers", recipe.workers, 0),
        ("augment.crop", recipe.augment.crop, 32),
        ("criterion.background-weight", recipe.criterion.background_weight, 1e-6),
        ("criterion.point-weight", recipe.criterion.point_weight, 0.0),
    ):
        check_range(option, value, least)
    check_range("seed", recipe.seed, 0, 2**32 - 1)
    check_range("ema", recipe.ema, 0, 1 - 1e-6)
    for option in ("flip", "stain", "brown"):
        check_range(f"augment.{option}", getattr(recipe.augment, option), 0, 1)
    low, high = recipe.augment.scale
    check_range("augment.scale", low, 0.1, high)
    check_range("augment.scale", high, low, 10)
    check_destination(recipe.out)
    if recipe.out.exists() and Path(recipe.init).exists() and recipe.out.samefile(recipe.init):
        raise UserError(f"--out {recipe.out} is the file of --init; give the detector another name")


# The paper's detector with the hyper-parameters of the authors' public code, where the paper is silent.
DPA_P2PNET = Recipe()

# Minutes on two CPU cores: small tiles, a short run at a higher learning rate. Not for results.
DEMO = dataclasses.replace(
    DPA_P2PNET,
    name="demo",
    epochs=16,
    learning_rate=5e-4,
    warmup_steps=10,
    evaluate_every=4,
    checkpoint_every=4,
    augment=AugmentConfig(crop=192),
)

# The small detector of nuclei that patch_extraction counts with: it learns from H&E, and meets any stain.
# Own values, chosen on validation fields (tests/benchmarks/nuclei_fields.py): 12 MB and some 20 ms a patch.
NUCLEI = dataclasses.replace(
    DPA_P2PNET,
    name="nuclei",
    init="random",
    arch="regnetx_002",
    interval=8,
    channels=64,
    hidden=64,
    epochs=600,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=200,
    ema=0.998,
    evaluate_every=10,
    augment=AugmentConfig(crop=256, scale=(0.6, 1.5), stain=0.2, brown=0.5),
)

RECIPES = {recipe.name: recipe for recipe in (DPA_P2PNET, DEMO, NUCLEI)}
