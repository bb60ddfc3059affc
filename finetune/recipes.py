"""Named recipes: every number of a fine-tuning run, with its source."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from finetune.datasets import DataOptions
from finetune.networks import PointNetwork, RivalNetwork
from finetune.training.augment import AugmentConfig
from finetune.training.criterion import CriterionConfig
from finetune.training.rivals.map_losses import DiscsConfig, PeaksConfig
from finetune.training.rivals.query_loss import QueriesConfig
from finetune.training.rivals.square_loss import SquaresConfig
from finetune.training.rivals.transport_loss import TransportConfig
from shared.cli import Range, as_plain, check_range, validate
from shared.errors import UserError
from shared.model.rivals.rival_detector import NETWORKS
from shared.training.precision import Precision
from shared.weights.weights_file import check_destination

# The recipe decides which of them it is.
Criterion = CriterionConfig | DiscsConfig | PeaksConfig | SquaresConfig | TransportConfig | QueriesConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning run."""

    help_groups: ClassVar = {
        "init": "input",
        "out": "output",
        "network": "detector",
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
    network: Annotated[PointNetwork | RivalNetwork, tyro.conf.arg(name="")] = PointNetwork()
    """Architecture of the detector."""
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
    criterion: Criterion = CriterionConfig()
    """The loss."""


def check(recipe: Recipe) -> None:
    """Check the ranges of all numbers.

    Raises:
        UserError: names the option and its range.
    """
    validate(recipe)
    if isinstance(recipe.network, RivalNetwork):
        recipe.network.check()
        if recipe.arch is not None:
            raise UserError(f"--arch {recipe.arch} is an option of DPA-P2PNet; {recipe.name} has its own trunk")
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


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Replace fields of a recipe and of its network."""
    of_network = {name: settings[name] for name in settings if hasattr(recipe.network, name)}
    others = {name: settings[name] for name in settings if name not in of_network}
    return dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, **of_network), **others)


def comparable_settings(recipe: Recipe) -> dict[str, object]:
    """Collect settings to compare with a run's `config.json`; the network's also as older versions wrote them."""
    return {**as_plain(recipe), **as_plain(recipe.network)}


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
    network=PointNetwork(channels=128, hidden=128),
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
    network=PointNetwork(interval=8, channels=64, hidden=64, distinct_um=2.0),
    images=40_000,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=200,
    augment=AugmentConfig(scale=(0.7, 1.4), colour=0.1, degrade=0.2, stain=0.2, brown=0.4),
)


def _rival(
    name: str,
    network: str,
    criterion: Criterion,
    learning_rate: float = 1e-4,
    init: str = "imagenet",
) -> Recipe:
    """Make the recipe of a rival: all but network, loss and learning rate is DPA-P2PNet's, to compare fairly."""
    return dataclasses.replace(
        DPA_P2PNET,
        name=name,
        init=init,
        network=RivalNetwork(rival=network, decoder=NETWORKS[network].decoders[0]),
        criterion=criterion,
        learning_rate=learning_rate,
    )


# The networks that the paper compares with. Learning rates are the public codes' (MCSpatNet, FIDT, CLTR) or ours.
RIVALS = (
    _rival("unet", "unet", DiscsConfig(), 3e-4, init="random"),
    _rival("deeplabv3plus", "deeplabv3plus", DiscsConfig()),
    _rival("ucsrnet", "ucsrnet", PeaksConfig(shape="gaussian")),
    _rival("mcspatnet", "mcspatnet", SquaresConfig(), 5e-5),
    _rival("gl", "vgg", TransportConfig()),
    _rival("fidt", "hrnet", PeaksConfig(shape="fidt")),
    _rival("cltr", "cltr", QueriesConfig()),
)

RECIPES = {recipe.name: recipe for recipe in (DPA_P2PNET, PUBLISHED, DEMO, NUCLEI, *RIVALS)}
