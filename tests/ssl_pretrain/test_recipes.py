"""The published recipes field by field, what becomes of them for IHC, and options that make no sense."""

import re
from pathlib import Path

import pytest
import torch
from lightly.models.utils import random_token_mask

from shared.cli import as_plain, parse_beside
from shared.errors import UserError
from shared.files import write_json
from shared.signals import StopSignal
from shared.training.distributed import World
from ssl_pretrain.launch import LAUNCH
from ssl_pretrain.methods import mae
from ssl_pretrain.optim import optimizers
from ssl_pretrain.recipes import MAE_DEMO, MAE_VITB, RECIPES, check
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.train import train
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.stub import changed

IMAGENET = 1_281_167  # images of an "ImageNet epoch"
# size, scale, count, interpolation, blur, solarise
CROPS = {
    # main_moco.py --aug-plus
    "moco_v2_resnet50": [(224, (0.2, 1.0), 2, "bilinear", 0.5, 0)],
    # scripts/swav_800ep_pretrain.sh, src/multicropdataset.py
    "swav_resnet50": [(224, (0.14, 1.0), 2, "bilinear", 0.5, 0), (96, (0.05, 0.14), 6, "bilinear", 0.5, 0)],
    "swav_resnet50_256": [(224, (0.14, 1.0), 2, "bilinear", 0.5, 0), (96, (0.05, 0.14), 6, "bilinear", 0.5, 0)],
    # README and main_dino.py
    "dino_resnet50": [
        (224, (0.14, 1.0), 1, "bicubic", 1.0, 0),
        (224, (0.14, 1.0), 1, "bicubic", 0.1, 0.2),
        (96, (0.05, 0.14), 8, "bicubic", 0.5, 0),
    ],
    "dino_vitb": [
        (224, (0.4, 1.0), 1, "bicubic", 1.0, 0),
        (224, (0.4, 1.0), 1, "bicubic", 0.1, 0.2),
        (96, (0.05, 0.4), 8, "bicubic", 0.5, 0),
    ],
    "mae_vitb": [(224, (0.2, 1.0), 1, "bicubic", 0, 0)],
}
# Probability of jitter; brightness, contrast, saturation, hue; probability of grayscale.
COLOURS = {
    "moco_v2_resnet50": (0.8, 0.4, 0.4, 0.4, 0.1, 0.2),
    "swav_resnet50": (0.8, 0.8, 0.8, 0.8, 0.2, 0.2),
    "swav_resnet50_256": (0.8, 0.8, 0.8, 0.8, 0.2, 0.2),
    "dino_resnet50": (0.8, 0.4, 0.4, 0.2, 0.1, 0.2),
    "dino_vitb": (0.8, 0.4, 0.4, 0.2, 0.1, 0.2),
    "mae_vitb": (0, 0, 0, 0, 0, 0),
}
# Batch; peak, first and final learning rate; epochs of warm-up; first and final decay; clip; all decayed.
STEPS = {
    "moco_v2_resnet50": (256, 0.03, 0.03, 0, 0, 1e-4, 1e-4, None, True),
    "swav_resnet50": (4096, 4.8, 0.3, 0.0048, 10, 1e-6, 1e-6, None, True),
    "swav_resnet50_256": (256, 0.6, 0.6, 0.0006, 0, 1e-6, 1e-6, None, True),
    "dino_resnet50": (512, 0.06, 0, 1e-6, 10, 1e-4, 1e-4, 3.0, False),
    "dino_vitb": (1024, 0.002, 0, 1e-6, 10, 0.04, 0.4, 3.0, False),
    "mae_vitb": (4096, 2.4e-3, 0, 0, 40, 0.05, 0.05, None, False),
}
OPTIMISERS = {
    "moco_v2_resnet50": (optimizers.SGD, {"momentum": 0.9}),
    "swav_resnet50": (optimizers.LARC, {"momentum": 0.9, "trust": 0.001}),
    "swav_resnet50_256": (optimizers.LARC, {"momentum": 0.9, "trust": 0.001}),
    "dino_resnet50": (optimizers.SGD, {"momentum": 0.9}),
    "dino_vitb": (optimizers.AdamW, {"betas": (0.9, 0.999)}),
    "mae_vitb": (optimizers.AdamW, {"betas": (0.9, 0.95)}),
}
METHODS = {
    "moco_v2_resnet50": {
        **{"arch": "resnet50", "hidden_dim": 2048, "dim": 128, "queue_length": 65536, "momentum": 0.999},
        **{"temperature": 0.2, "key_group": 256 // 8},
    },
    "swav_resnet50": {
        **{"arch": "resnet50", "hidden_dim": 2048, "dim": 128, "prototypes": 3000, "temperature": 0.1},
        **{"epsilon": 0.05, "sinkhorn_iterations": 3, "queue_length": 0},
    },
    "swav_resnet50_256": {
        **{"arch": "resnet50", "hidden_dim": 2048, "dim": 128, "prototypes": 3000, "temperature": 0.1},
        **{"epsilon": 0.05, "sinkhorn_iterations": 3, "queue_length": 3840, "queue_after": 15 * IMAGENET},
    },
    "dino_resnet50": {
        **{"arch": "resnet50", "hidden_dim": 2048, "bottleneck_dim": 256, "output_dim": 65536},
        **{"norm_last_layer": True, "student_temperature": 0.1, "teacher_temperature": 0.04},
        **{"temperature_samples": 0, "centre_momentum": 0.9, "momentum": 0.996, "drop_path": 0},
    },
    "dino_vitb": {
        **{"arch": "vit_base_patch16_224", "hidden_dim": 2048, "bottleneck_dim": 256, "output_dim": 65536},
        **{"norm_last_layer": True, "student_temperature": 0.1, "teacher_temperature": 0.04},
        **{"temperature_samples": 0, "centre_momentum": 0.9, "momentum": 0.996, "drop_path": 0.1},
    },
    "mae_vitb": {
        **{"arch": "vit_base_patch16_224", "image_size": 224, "crop_scale": (0.2, 1.0), "mask_ratio": 0.75},
        **{"norm_pix_loss": True, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
    },
}
published = pytest.mark.parametrize("name", tiny.NAMES)


def described(recipe):
    return [(c.size, c.scale, c.count, c.interpolation, c.blur, c.solarise) for c in recipe.method.crops]


@published
def test_recipes_are_the_published_ones(name: str):
    """The official codes' numbers; 200 epochs: Kang et al. 2023."""
    recipe = RECIPES[name]
    assert described(recipe) == CROPS[name]
    views = recipe.views
    strengths = (views.brightness, views.contrast, views.saturation, views.hue)
    jitter = views.jitter if any(strengths) else 0
    assert (jitter, *strengths, views.grayscale) == COLOURS[name]
    assert (views.horizontal_flip, views.vertical_flip, views.quarter_turns) == (0.5, 0.0, False)
    assert views.blur_sigma == (0.1, 2.0)
    kind, own = OPTIMISERS[name]
    assert type(recipe.optimiser) is kind
    assert own.items() <= vars(recipe.optimiser).items()
    assert METHODS[name].items() <= vars(recipe.method).items()
    assert recipe.samples_seen == 200 * IMAGENET
    assert (recipe.normalisation, recipe.seed, recipe.max_steps, recipe.verify) == ("shards", 0, None, True)


@published
def test_schedules_begin_and_end_as_published(name: str):
    batch, peak, first, final, warmup, decay, final_decay, clip, all_decayed = STEPS[name]
    recipe = RECIPES[name]
    plan, optimiser = BatchPlan.of(recipe, ranks=1), recipe.optimiser
    assert recipe.batch_size == batch
    assert plan.learning_rate(0) == pytest.approx(first)
    at_peak = -(-warmup * IMAGENET // batch)
    assert plan.learning_rate(at_peak) == pytest.approx(peak, rel=1e-3)
    assert plan.learning_rate(plan.steps) == pytest.approx(final, abs=1e-12)
    assert plan.weight_decay(0) == pytest.approx(decay) and plan.weight_decay(plan.steps) == pytest.approx(
        final_decay
    )
    assert (optimiser.clip, optimiser.decay_all) == (clip, all_decayed)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("swav_resnet50", 313), ("swav_resnet50_256", 5005), ("dino_resnet50", 2503), ("dino_vitb", 1252)],
)
def test_steps_that_something_is_frozen_for(name: str, frozen: int):
    """SwAV's scripts: 313 and 5005 iterations; DINO: an epoch."""
    plan = BatchPlan.of(RECIPES[name], ranks=1)
    assert plan.at(frozen - 1).samples < RECIPES[name].method.frozen_samples <= plan.at(frozen).samples


def test_mae_is_divided_among_eight_gpus():
    plan = BatchPlan.of(MAE_VITB, ranks=8)
    assert (plan.micro_batch, plan.accumulation, plan.steps) == (256, 2, 62_557)


@published
def test_ihc_twins_keep_brown_apart_from_blue_and_turn_around(name: str):
    recipe, twin = RECIPES[name], RECIPES[f"{name}_ihc"]
    assert twin.views.hue == min(recipe.views.hue, 0.05) and twin.views.grayscale == 0
    assert (twin.views.vertical_flip, twin.views.quarter_turns) == (0.5, True)
    assert all(crop.solarise == 0 for crop in twin.method.crops)
    assert (str(twin.run_dir), str(twin.out)) == (f"runs/{name}_ihc", f"{name}_ihc.pth")
    rest = {"name", "run_dir", "out", "views", "method"}
    assert all(getattr(recipe, field) == value for field, value in vars(twin).items() if field not in rest)


@pytest.mark.parametrize("name", RECIPES)
def test_the_saved_config_of_a_run_gives_its_recipe(name: str, tmp_path: Path):
    path = tmp_path / "config.json"
    write_json(path, as_plain(RECIPES[name]))
    recipe, _ = parse_beside(RECIPES, "mae_vitb", "ssl_pretrain", "", LAUNCH, ["--config", str(path)])
    assert recipe == RECIPES[name]


@published
def test_every_option_of_a_recipe_can_be_given(name: str):
    words = [name, "--optimiser.base-lr", "0.5", "--method.image-size", "128", "--views.hue", "0.01"]
    recipe, _ = parse_beside(RECIPES, "mae_vitb", "ssl_pretrain", "", LAUNCH, words)
    assert (recipe.optimiser.base_lr, recipe.method.image_size, recipe.views.hue) == (0.5, 128, 0.01)
    assert type(recipe.method) is type(RECIPES[name].method)
    assert type(recipe.optimiser) is type(RECIPES[name].optimiser)


@pytest.mark.parametrize(
    ("name", "all_parameters", "exported"),
    [
        # torchvision's ResNet-50 has 25,557,032 with its classifier of 2,049,000; MoCo's head 4,458,624.
        ("moco_v2_resnet50", 2 * (23_508_032 + 4_458_624), 23_508_032),
        # Head 2048 x 2048, its norm, 2048 x 128 + 128; 3000 prototypes. Without the bias before the norm.
        ("swav_resnet50", 23_508_032 + 4_194_304 + 4096 + 262_272 + 384_000, 23_508_032),
        # Head: 2048-2048-2048-256, then 65,536 vectors with a length each.
        ("dino_resnet50", 2 * (23_508_032 + 8_917_248 + 16_777_216 + 65_536), 23_508_032),
        ("dino_vitb", 2 * (85_798_656 + 6_295_808 + 16_777_216 + 65_536), 85_798_656),
        # mae_vit_base_patch16
        ("mae_vitb", 111_908_608, 85_798_656),
    ],
)
def test_networks_have_the_published_sizes(name: str, all_parameters: int, exported: int):
    with torch.device("meta"):
        method = changed(RECIPES[name].method).build()
    assert sum(p.numel() for p in method.parameters()) == all_parameters
    assert sum(p.numel() for p in method.backbone().parameters()) == exported


def test_mae_sees_49_of_196_patches():
    with torch.device("meta"):
        method = MAE_VITB.method.build()
    assert (len(method.decoder.blocks), method.decoder.blocks[0].attn.num_heads) == (8, 16)
    assert method.embed.out_features == 512 and method.predict.out_features == 16 * 16 * 3
    keep_BK, hidden_BM = random_token_mask((2, method.tokens), MAE_VITB.method.mask_ratio)
    assert (keep_BK.shape, hidden_BM.shape) == ((2, 50), (2, 147))  # the class token is one of the 50


def test_recipes_are_called_what_they_are_listed_as():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert isinstance(MAE_DEMO.method, mae.MAEConfig)


@pytest.mark.parametrize(
    ("part", "field", "values"),
    [
        ("", "max_steps", (-3, 0)),
        ("", "batch_size", (0, -8)),
        ("", "micro_batch", (0, -1)),
        ("", "samples_seen", (0, -1)),
        ("", "log_every", (0,)),
        ("", "checkpoint_every", (0,)),
        ("", "keep_every", (0, -1000)),
        ("", "monitor_every", (-1,)),
        ("", "seed", (-1, 2**32)),
        ("loader", "workers", (-1,)),
        ("loader", "buffer", (0,)),
        ("loader", "batches_ahead", (0,)),
        ("optimiser", "base_lr", (0.0, -1.0, float("nan"))),
        ("optimiser", "betas", ((1.0, 0.9), (0.9, -0.1))),
        ("optimiser", "weight_decay", (-0.1,)),
        ("optimiser", "final_weight_decay", (-0.1,)),
        ("optimiser", "warmup_samples", (-1,)),
        ("optimiser", "warmup_lr", (-1.0,)),
        ("optimiser", "clip", (0.0, -1.0)),
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


@pytest.mark.parametrize(
    ("name", "part", "field", "values"),
    [
        ("moco_v2_resnet50", "optimiser", "momentum", (1.0, -0.1)),
        ("swav_resnet50", "optimiser", "trust", (0.0,)),
        ("moco_v2_resnet50", "method", "arch", ("vit_base_patch16_224", "resnet101")),
        ("moco_v2_resnet50", "method", "image_size", (0, 16)),
        ("moco_v2_resnet50", "method", "crop_scale", ((1.0, 0.2),)),
        ("moco_v2_resnet50", "method", "queue_length", (0,)),
        ("moco_v2_resnet50", "method", "momentum", (1.1,)),
        ("moco_v2_resnet50", "method", "temperature", (0.0,)),
        ("moco_v2_resnet50", "method", "key_group", (0,)),
        ("moco_v2_resnet50", "method", "blur", (1.5,)),
        ("moco_v2_resnet50", "views", "blur_sigma", ((0.1, 11.0), (0.1, float("inf")))),  # views of 32 px
        ("swav_resnet50", "method", "arch", ("vit_base_patch16_224",)),
        ("swav_resnet50", "method", "small_size", (16,)),
        ("swav_resnet50", "method", "small_scale", ((0.0, 0.1),)),
        ("swav_resnet50", "method", "large_scale", ((0.5, 1.1),)),
        ("swav_resnet50", "method", "small_crops", (-1,)),
        ("swav_resnet50", "method", "prototypes", (0,)),
        ("swav_resnet50", "method", "epsilon", (0.0, 0.01)),
        ("swav_resnet50", "method", "queue_length", (-1,)),
        ("dino_vitb", "method", "arch", ("resnet101",)),
        ("dino_vitb", "method", "image_size", (100,)),
        ("dino_vitb", "method", "local_size", (100,)),
        ("dino_vitb", "method", "local_scale", ((0.4, 0.05),)),
        ("dino_vitb", "method", "global_scale", ((0.4, 2.0),)),
        ("dino_vitb", "method", "solarise", (-0.1,)),
        ("dino_vitb", "method", "blur", ((1.0, 0.5, 1.5),)),
        ("dino_vitb", "method", "drop_path", (1.0,)),
        ("dino_resnet50", "method", "drop_path", (0.1,)),
        ("dino_vitb", "method", "teacher_temperature", (0.0,)),
        ("dino_vitb", "method", "momentum", (1.5,)),
        ("dino_vitb", "method", "frozen_samples", (-1,)),
    ],
)
def test_options_of_other_methods_that_make_no_sense(
    tmp_path: Path, world: World, name: str, part: str, field: str, values: tuple
):
    recipe = tiny.recipe(name, tmp_path / "shards", tmp_path)
    for value in values:
        bad = changed(getattr(recipe, part), **{field: value})
        with pytest.raises(UserError, match=f"--{part}.{field.replace('_', '-')}"):
            train(changed(recipe, **{part: bad}), world, StopSignal())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "field"), [("swav_resnet50", "small_crops"), ("dino_vitb", "local_crops")])
def test_methods_do_without_small_crops(name: str, field: str, tmp_path: Path, shards: Path, world: World):
    recipe = tiny.recipe(name, shards, tmp_path, method=tiny.method(name, **{field: 0}), max_steps=1)
    assert train(recipe, world, StopSignal()) == 0


def test_a_blur_may_reach_as_far_as_a_view_is_wide():
    recipe = tiny.recipe("moco_v2_resnet50", Path("shards"), Path())
    check(changed(recipe, views=changed(recipe.views, blur_sigma=(0.1, 10.0))))


@pytest.mark.parametrize(
    ("name", "batch", "micro_batch", "part_of_advice"),
    [
        ("swav_resnet50", 4096, 4096, None),
        ("swav_resnet50_256", 256, 64, None),
        ("moco_v2_resnet50", 256, 256, None),
        ("moco_v2_resnet50", 256, 32, "--micro-batch above 32"),
        ("dino_vitb", 1024, 64, None),
    ],
)
def test_advice_where_a_batch_is_too_small_for_its_method(
    name: str, batch: int, micro_batch: int, part_of_advice: str | None
):
    told = str(BatchPlan.of(changed(RECIPES[name], batch_size=batch, micro_batch=micro_batch), ranks=1))
    if part_of_advice is None:
        assert "advice" not in told
    else:
        assert re.search(f"\nadvice  .*{part_of_advice}", told)


def test_the_batch_that_a_loss_sees_is_told():
    told = str(BatchPlan.of(RECIPES["dino_vitb"], ranks=8))
    assert "1,024 images = 8 rank(s) x 64 x 2 accumulated; batch norms and what the loss shares" in told
    assert "see 512 at once" in told
    assert "at once" not in str(BatchPlan.of(MAE_VITB, ranks=8))
