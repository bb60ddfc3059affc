"""Named recipes: every number of a fine-tuning run, with its source."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from finetune.datasets import DataOptions
from finetune.training.augment import AugmentConfig
from finetune.training.criterion import CriterionConfig
from shared.cli import Range, check_range, validate
from shared.errors import UserError
from shared.model.multi_fov import Upsampling
from shared.training.precision import Precision
from shared.weights.weights_file import check_destination


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning run."""

    help_groups: ClassVar = {
        "init": "input",
        "out": "output",
        "interval": "detector",
        "images": "training",
        "evaluate_every": "run",
    }

    name: Annotated[str, tyro.conf.Fixed] = "dpa_p2pnet"
    """Recipe name."""
    init: str = "imagenet"
    """Initial weights: a detector.pth, or of the trunk: a file of any project, imagenet (timm's hub) or random."""
    arch: str | None = None
    """timm name of the trunk, if the weights file does not state it (resnet50, vit_base_patch16_224, ...)."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions()
    """The annotated data."""
    out: Path = Path("detector.pth")
    """Destination of the best detector at the end."""
    run_dir: Path = Path("runs/finetune")
    """Checkpoints, curves and pictures; the same folder resumes the run."""
    interval: Annotated[int | None, Range(1)] = None
    """Px between proposals; default 8 at 0.4 um/px and coarser, else 16 (paper: 8 on CoNSeP, 16 at 40x)."""
    multi_scale: bool = True
    """Decode every proposal from all levels P2..P6 (paper, equation 1); off: P2PNet's single-level heads."""
    deformable: bool = True
    """Deform the proposals before decoding (paper, Figure 1)."""
    summed: bool = False
    """With `no-multi-scale`: add all levels at stride 16 before decoding, as E2E does (paper, Table 3)."""
    refinements: Annotated[int, Range(0)] = 0
    """With `no-deformable`: number of further decodings, each from the points before (paper's ablation)."""
    views: Annotated[int, Range(1)] = 1
    """Concentric fields of view (the paper's K); 2 needs an image of twice the width beside each tile."""
    upsampling: Upsampling = "transposed"
    """Upsampling of the maps of wider views: transposed (learnt) or bilinear (paper, Table 4)."""
    distinct_um: Annotated[float, Range(0, 20)] = 0.0
    """Train and report only the most probable of points that end this close (DDQ, Zhang et al. 2023); 0: all."""
    channels: Annotated[int, Range(1)] = 256
    """Channels of the feature pyramid (authors' public code)."""
    hidden: Annotated[int, Range(1)] = 256
    """Hidden width of the MLPs (authors' public code; the paper's parameter counts need it)."""
    images: Annotated[int, Range(1)] = 12_000
    """Training crops in all (ours: validation scores on CoNSeP level off there)."""
    epochs: Annotated[int | None, Range(0)] = None
    """Passes over the training tiles, instead of a number of crops."""
    batch_size: Annotated[int, Range(1)] = 4
    """Tiles a step over all ranks (authors' public code)."""
    accumulate: Annotated[int, Range(1)] = 1
    """Passes that a rank's share of the batch is split into, to save memory."""
    ema: Annotated[float, Range(0, 1 - 1e-6)] = 0.995
    """Decay of the moving average of the weights that is validated and published; 0: no average (ours: +3.7 F1 on
    CoNSeP's validation tiles at a constant rate, +0.3 at the end of the cosine)."""
    learning_rate: Annotated[float, Range(0)] = 3e-4
    """AdamW (ours: +1.2 F1 after 300 steps on CoNSeP's validation tiles; authors' public code: 1e-4)."""
    trunk_rate: Annotated[float, Range(0)] = 1.0
    """Learning rate of the trunk relative to neck, decoder and adapter."""
    layer_decay: Annotated[float, Range(0.01, 1)] = 1.0
    """With a ViT: learning rate of each block relative to the next (BEiT fine-tuning: 0.65 to 0.75)."""
    freeze_trunk: bool = False
    """Keep the trunk as it is: no gradients of its weights, less memory."""
    lora: Annotated[int, Range(0, 1024)] = 0
    """With a ViT: train its attention by changes of this rank (LoRA) and nothing else of the trunk; 0: off."""
    weight_decay: Annotated[float, Range(0)] = 1e-4
    """AdamW (paper, Implementation Details)."""
    precision: Precision = "auto"
    """Precision of matrix products in training; auto: bfloat16 on a GPU and on processors that compute in it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the run: to zero along a cosine, or constant (authors' public code)."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """Steps of linear warm-up."""
    clip_norm: Annotated[float, Range(1e-9)] = 0.1
    """Maximum gradient norm (authors' public code)."""
    evaluate_every: Annotated[int | None, Range(1)] = None
    """Epochs between validations; default: 20 validations a run."""
    checkpoint_every: Annotated[int | None, Range(1)] = None
    """Epochs between checkpoints; default: 20 checkpoints a run."""
    max_steps: Annotated[int | None, Range(0)] = None
    """Stop after this many steps; the same command without it resumes from there."""
    folds: int = 0
    """Cross-validate: train once a fold, its slides held out for testing; 0: use the data's own splits."""
    fold: int = 0
    """Train this one of the folds alone, counted from 1; 0: all, one after another."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of weights, sample order and augmentation."""
    workers: Annotated[int, Range(0)] = 2
    """Loader processes per rank."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the training tiles."""
    criterion: CriterionConfig = CriterionConfig()
    """The loss."""


def check(recipe: Recipe) -> None:
    """Check the ranges of all numbers.

    Raises:
        UserError: names the option and its range.
    """
    validate(recipe)
    check_range("criterion.background-weight", recipe.criterion.background_weight, 1e-6)
    check_range("criterion.point-weight", recipe.criterion.point_weight, 0.0)
    if recipe.folds or recipe.fold:
        check_range("folds", recipe.folds, 3)  # one to train on, one to validate, one to test
        check_range("fold", recipe.fold, 0, recipe.folds)
    if recipe.lora and recipe.freeze_trunk:
        raise UserError("--lora trains the attention that --freeze-trunk keeps as it is; give one of them")
    low, high = recipe.augment.scale
    check_range("augment.scale", low, 0.1, high)
    check_destination(recipe.out)
    if recipe.out.exists() and Path(recipe.init).exists() and recipe.out.samefile(recipe.init):
        raise UserError(f"--out {recipe.out} is the file of --init; give the detector another name")


# DPA-P2PNet as it learns best of 20 to 200 tiles: its numbers were chosen on CoNSeP's validation tiles.
DPA_P2PNET = Recipe()

# The hyper-parameters of the authors' public code, where the paper is silent.
PUBLISHED = dataclasses.replace(
    DPA_P2PNET,
    name="published",
    epochs=200,
    ema=0.0,
    learning_rate=1e-4,
    augment=AugmentConfig(crop=448, quarter_turns=False, stain=0.0),
    criterion=CriterionConfig(background_weight=0.4),
)

# Minutes on two CPU cores: small crops, a short run at a high learning rate. Not for results.
DEMO = dataclasses.replace(
    DPA_P2PNET,
    name="demo",
    channels=128,
    hidden=128,
    epochs=66,
    batch_size=8,
    ema=0.95,
    learning_rate=1e-3,
    warmup_steps=10,
    evaluate_every=22,
    checkpoint_every=11,
    augment=AugmentConfig(crop=128, stain=0.1),
    criterion=CriterionConfig(background_weight=0.4),
)

# The small detector of nuclei that patch_extraction counts cells with: trained on H&E, applied to any stain.
# Own values, chosen on validation fields (tests/benchmarks/nuclei_fields.py): 12 MB and some 20 ms a patch.
NUCLEI = dataclasses.replace(
    DPA_P2PNET,
    name="nuclei",
    init="random",
    arch="regnetx_002",
    interval=8,
    channels=64,
    hidden=64,
    distinct_um=2.0,
    images=40_000,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=200,
    augment=AugmentConfig(scale=(0.7, 1.4), colour=0.1, degrade=0.2, stain=0.2, brown=0.4),
)

RECIPES = {recipe.name: recipe for recipe in (DPA_P2PNET, PUBLISHED, DEMO, NUCLEI)}
