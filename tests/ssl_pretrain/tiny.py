"""Networks so small that every method runs on a busy CPU."""

from pathlib import Path

import timm
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

from shared.weights.vit_families import VITS
from ssl_pretrain.methods import Step, trunks
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.recipes import MAE_DEMO, RECIPES
from tests.ssl_pretrain.stub import changed

RESNET, VIT = "resnet_minute", "vit_minute"
trunks.RESNETS = (*trunks.RESNETS, RESNET)
VITS[32, 3] = VIT
FIRST = Step(0, 0, 160)
# 40 images of 8 a step; what is frozen or filled at first no longer is in the third step.
METHODS = {
    "moco_v2": {"arch": RESNET, "image_size": 32, "hidden_dim": 16, "dim": 8, "queue_length": 20, "key_group": 3},
    "swav": {
        **{"arch": RESNET, "image_size": 64, "small_size": 32, "small_crops": 2, "hidden_dim": 16, "dim": 8},
        **{"prototypes": 10, "frozen_samples": 12, "queue_length": 12, "queue_after": 8},
    },
    "dino": {
        **{"image_size": 64, "local_size": 32, "local_crops": 2, "hidden_dim": 16, "bottleneck_dim": 8},
        **{"output_dim": 20, "frozen_samples": 12, "temperature_samples": 40, "first_teacher_temperature": 0.07},
    },
    "mae": {"arch": VIT, "image_size": 32, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
}
ARCHS = {"dino_resnet50": {"arch": RESNET}, "dino_vitb": {"arch": VIT}}
NAMES = ("moco_v2_resnet50", "swav_resnet50", "swav_resnet50_256", "dino_resnet50", "dino_vitb", "mae_vitb")


# What timm's factory passes on, and these networks have no use for.
FACTORY = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


@timm.models.register_model
def resnet_minute(**options: object) -> ResNet:
    """Return a ResNet of 0.1 M parameters."""
    options = {name: value for name, value in options.items() if name not in FACTORY}
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 16, 32, 64), **options)


@timm.models.register_model
def vit_minute(**options: object) -> VisionTransformer:
    """Return a ViT of 0.06 M parameters."""
    options = {name: value for name, value in options.items() if name not in FACTORY}
    return VisionTransformer(patch_size=16, embed_dim=32, depth=3, num_heads=2, **options)


def method(name: str, **fields: object):
    """Return the method of a published recipe with tiny networks."""
    config = RECIPES[name].method
    own = METHODS[config.name] | ARCHS.get(name, {})
    if name == "swav_resnet50":
        own = own | {"queue_length": 0, "queue_after": 0}
    return changed(config, **{**own, **fields})


def recipe(name: str, shards: Path, folder: Path, **fields: object) -> PretrainingRecipe:
    """Return a published recipe with tiny networks and 20 steps of 8 images, in two passes of 4."""
    published = RECIPES[name]
    told = {
        "shards": shards,
        "run_dir": folder / "run",
        "out": folder / "out.pth",
        "method": method(name),
        "optimiser": changed(published.optimiser, warmup_samples=16 if published.optimiser.warmup_samples else 0),
        "batch_size": 8,
        "micro_batch": 4,
        "samples_seen": 160,
        "loader": changed(MAE_DEMO.loader, workers=0),
        "log_every": 1,
    }
    return changed(published, **{**told, **fields})
