"""The published recipe field by field, and options that make no sense."""

from pathlib import Path

import pytest
import torch
from lightly.models.utils import random_token_mask

from shared.command_line import UserError
from shared.distributed import World
from shared.stop_signal import StopSignal
from ssl_pretrain.methods import mae
from ssl_pretrain.plan import Plan
from ssl_pretrain.recipes import MAE_DEMO, MAE_VITB, RECIPES
from ssl_pretrain.train import train
from tests.ssl_pretrain.stub import changed

IMAGENET = 1_281_167  # images of an "ImageNet epoch"


def test_mae_vitb_is_the_published_recipe():
    """PRETRAIN.md, main_pretrain.py and models_mae.py of the official code; 200 epochs: Kang et al. 2023."""
    assert vars(MAE_VITB.method) == {
        "arch": "vit_base_patch16_224",
        "image_size": 224,
        "crop_scale": (0.2, 1.0),
        "mask_ratio": 0.75,
        "norm_pix_loss": True,
        "decoder_dim": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
    }
    (crop,) = MAE_VITB.method.crops
    assert (crop.size, crop.scale, crop.count, crop.interpolation) == (224, (0.2, 1.0), 1, "bicubic")
    assert vars(MAE_VITB.views) == {"horizontal_flip": 0.5, "vertical_flip": 0.0}
    assert vars(MAE_VITB.optimiser) == {
        "base_lr": 1.5e-4,
        "betas": (0.9, 0.95),
        "weight_decay": 0.05,
        "warmup_samples": 40 * IMAGENET,
        "final_lr": 0.0,
    }
    assert (MAE_VITB.batch_size, MAE_VITB.samples_seen) == (4096, 200 * IMAGENET)
    assert (MAE_VITB.normalisation, MAE_VITB.seed, MAE_VITB.max_steps, MAE_VITB.verify) == (
        "shards",
        0,
        None,
        True,
    )
    assert MAE_VITB.optimiser.peak_lr(4096) == pytest.approx(2.4e-3)
    plan = Plan.of(MAE_VITB, ranks=8)
    assert (plan.micro_batch, plan.accumulation, plan.steps) == (256, 2, 62_557)


def test_mae_vitb_has_the_published_networks():
    """mae_vit_base_patch16 has 111.9 M parameters, of which the encoder 85.8 M; 49 of 196 patches are seen."""
    with torch.device("meta"):
        method = MAE_VITB.method.build()
    assert sum(p.numel() for p in method.parameters()) == 111_908_608
    assert sum(p.numel() for p in method.backbone().parameters()) == 85_798_656
    assert (len(method.decoder.blocks), method.decoder.blocks[0].attn.num_heads) == (8, 16)
    assert method.embed.out_features == 512 and method.predict.out_features == 16 * 16 * 3
    keep_BK, hidden_BM = random_token_mask((2, method.tokens), MAE_VITB.method.mask_ratio)
    assert (keep_BK.shape, hidden_BM.shape) == ((2, 50), (2, 147))  # the class token is one of the 50


def test_recipes_are_called_what_they_are_listed_as():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert isinstance(MAE_DEMO.method, mae.Config)


@pytest.mark.parametrize(
    ("part", "field", "values"),
    [
        ("", "max_steps", (-3, 0)),
        ("", "batch_size", (0, -8)),
        ("", "micro_batch", (0, -1)),
        ("", "samples_seen", (0, -1)),
        ("", "log_every", (0,)),
        ("", "checkpoint_every", (0,)),
        ("", "seed", (-1, 2**32)),
        ("loader", "workers", (-1,)),
        ("loader", "buffer", (0,)),
        ("loader", "batches_ahead", (0,)),
        ("optimiser", "base_lr", (0.0, -1.0, float("nan"))),
        ("optimiser", "betas", ((1.0, 0.9), (0.9, -0.1))),
        ("optimiser", "weight_decay", (-0.1,)),
        ("optimiser", "warmup_samples", (-1,)),
        ("optimiser", "final_lr", (-1.0,)),
        ("views", "horizontal_flip", (-0.1, 1.1)),
        ("views", "vertical_flip", (2.0,)),
        ("method", "image_size", (0, -16, 16, 100)),
        ("method", "crop_scale", ((1.0, 0.2), (0.0, 1.0), (0.2, 1.5))),
        ("method", "mask_ratio", (0.0, 1.0, 1.5, -1.0, 0.99, float("nan"))),
        ("method", "decoder_dim", (0, 30, 36)),  # of 8 heads
        ("method", "decoder_depth", (0,)),
        ("method", "decoder_heads", (0, 3)),
        ("method", "arch", ("resnet50",)),
    ],
)
def test_options_that_make_no_sense_are_named_before_anything_is_written(
    tmp_path: Path, world: World, part: str, field: str, values: tuple
):
    recipe = changed(MAE_DEMO, shards=tmp_path / "shards", run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    recipe = changed(recipe, method=changed(recipe.method, decoder_heads=8))
    option = ".".join(filter(None, [part, field])).replace("_", "-")
    for value in values:
        bad = changed(getattr(recipe, part), **{field: value}) if part else value
        with pytest.raises(UserError, match=f"--{option}"):
            train(changed(recipe, **{part or field: bad}), world, StopSignal())
    assert not list(tmp_path.iterdir())
