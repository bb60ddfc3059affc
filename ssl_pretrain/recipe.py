"""Options of a pre-training run, with the checks of a whole recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from shared.cli import Range, validate
from shared.errors import UserError
from shared.training.precision import Precision
from ssl_pretrain.data.shard_loader import LoaderConfig
from ssl_pretrain.data.views import ViewsConfig
from ssl_pretrain.methods import dino, mae, moco_v2, swav
from ssl_pretrain.optim.optimizers import LARC, SGD, AdamW

# The recipe decides which of them it is; its options then stand under `--method.` and `--optimiser.`.
Method = tyro.conf.AvoidSubcommands[
    Annotated[mae.MAEConfig, tyro.conf.subcommand("mae")]
    | Annotated[moco_v2.MoCoConfig, tyro.conf.subcommand("moco_v2")]
    | Annotated[swav.SwAVConfig, tyro.conf.subcommand("swav")]
    | Annotated[dino.DINOConfig, tyro.conf.subcommand("dino")]
]
Optimiser = tyro.conf.AvoidSubcommands[AdamW | SGD | LARC]


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe:
    """A pre-training run."""

    help_groups: ClassVar = {
        "shards": "input",
        "run_dir": "output",
        "normalisation": "training",
        "verify": "run",
    }

    name: Annotated[str, tyro.conf.Fixed]
    """Recipe name."""
    shards: Path = Path("shards")
    """Folder of shards, as written by `python -m patch_extraction`."""
    run_dir: Path
    """Folder of checkpoints, metrics and pictures; the same command resumes from it."""
    out: Path
    """File to which the weights are copied at the end."""
    init: Path | None = None
    """Weights that the trunk goes on from: a file of any project that finetune --init reads; default: fresh ones.
    Decoders, heads and queues start fresh."""
    method: Method
    """Networks and loss."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Augmentation of views after cropping."""
    normalisation: Literal["shards", "imagenet"] = "shards"
    """Channel means and standard deviations for normalisation: those of the shards or of ImageNet; with `init`
    always those of the weights."""
    optimiser: Optimiser
    """Optimiser and learning rate."""
    batch_size: Annotated[int, Range(1)]
    """Images an optimiser step sees, on all ranks together."""
    micro_batch: Annotated[int, Range(1)] = 256
    """Maximum images of a rank in one pass; the rest of its share is accumulated. Lower it if memory runs out."""
    samples_seen: Annotated[int, Range(1)]
    """Length of the run in images."""
    max_steps: Annotated[int | None, Range(1)] = None
    """Stop after this many steps, to try things out; the schedule stays that of the whole length."""
    precision: Precision = "auto"
    """Precision of convolutions and matrix products: float32, bfloat16, or auto: bfloat16 on a GPU."""
    compile: bool = False
    """Have torch compile trunks and views: some minutes in the beginning, then faster steps. Views then differ in
    their random numbers."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, slower steps. Batch
    norms count such a pass twice in their running statistics."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Loading of the shards. A resumed run keeps its number of workers unless another is given."""
    verify: bool = True
    """Compare each shard's SHA-256 with the index before the first step."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Random seed."""
    deterministic: bool = False
    """Prefer GPU kernels that always give the same bits, and no TF32: runs can be repeated, but are slower. torch
    warns of operations that have no other kernel."""
    log_every: Annotated[int | None, Range(1)] = None
    """Log the loss and poll for preemption every so many steps (each poll synchronises the GPU); None, and at the
    latest: about every 10 s."""
    checkpoint_every: Annotated[int | None, Range(1)] = None
    """Steps between two checkpoints, each with a picture; None: about every 15 minutes."""
    keep_every: Annotated[int | None, Range(1)] = None
    """Steps between two checkpoints that stay for good; the two newest are always there. If `checkpoint-every` is
    given, a multiple of it."""
    monitor_every: Annotated[int | None, Range(0)] = None
    """Steps between two measurements of the features of the same 512 patches (128 on a CPU); there is one at the
    beginning and one at the end as well. None: about every 15 minutes; 0: none at all."""


def check(recipe: PretrainingRecipe) -> None:
    """Check ranges.

    Raises:
        UserError: names the option and what it takes.
    """
    validate(recipe)
    if recipe.keep_every and recipe.checkpoint_every and recipe.keep_every % recipe.checkpoint_every:
        raise UserError(
            f"--keep-every {recipe.keep_every} is not a multiple of --checkpoint-every {recipe.checkpoint_every}, "
            "at which checkpoints are written; give one"
        )
    recipe.method.check()
    recipe.views.check()
    _check_blur(recipe)


def _check_blur(recipe: PretrainingRecipe) -> None:
    """Refuse a blur wider than a view, whose edges are mirrored once."""
    reach = recipe.views.blur_reach
    for crop in recipe.method.crops:
        if crop.count and crop.blur and reach >= crop.size:
            raise UserError(
                f"--views.blur-sigma {recipe.views.blur_sigma[1]:g} reaches {reach} px, over views of "
                f"{crop.size} px; give at most {(crop.size - 1) // 3}"
            )
