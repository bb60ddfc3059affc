"""`--init`: a detector whose trunk starts from a weights file, ImageNet weights or random weights."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import timm
from torch import nn

from shared.errors import UserError
from shared.model import dpa_p2pnet as core
from shared.model.backbones import BACKBONES, create_backbone
from shared.weights.weights_file import LoadReport, Weights, load_into, read


class Start(NamedTuple):
    """A detector before its first step."""

    detector: core.DPAP2PNet
    loaded: set[str]
    """The trunk's tensors that came with the weights."""
    trunk_source: str
    """Description of the weights: file, layout, tensors used."""


def initial_detector(config: core.DetectorConfig, init: str, arch: str | None) -> Start:
    """Build the detector that training starts from.

    Args:
        config: The detector wanted; `arch`, `mean` and `std` are replaced by those of the weights.
        init: Path of a weights file (`shared.weights.weights_file.read` says whose), "imagenet" (timm's hub) or
            "random".
        arch: Name of the trunk in `shared.model.backbones`; None: from the weights, or ResNet-50.

    Raises:
        UserError: no such file, another network's file, or no way to the hub.
    """
    if init == "random":
        config = dataclasses.replace(config, arch=arch or "resnet50")
        return Start(core.DPAP2PNet(config), set(), f"{config.arch}, random weights")
    weights = _imagenet(arch or "resnet50") if init == "imagenet" else read(Path(init))
    if weights.metadata.get("kind") == "detector":
        raise UserError(
            f"{init} is a whole detector; --init takes the weights of a backbone (ssl_pretrain writes them)"
        )
    config = dataclasses.replace(config, arch=arch or weights.arch, mean=weights.mean, std=weights.std)
    detector = core.DPAP2PNet(config)
    report, *_ = [load_into(trunk, weights) for trunk in detector.trunks()]  # the same in every field of view
    return Start(detector, set(report.used), _origin(config, init, weights, report))


def pretrained_batch_norms(trunk: nn.Module, loaded: Iterable[str]) -> list[nn.Module]:
    """Find the batch norms whose statistics came with the weights: at batch 4 they beat the batch's own.

    They stay in eval mode in training, which trains their scale and shift; randomly initialised batch norms have
    no statistics worth keeping and train as usual.
    """
    names = set(loaded)
    return [
        module
        for name, module in trunk.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.running_mean" in names
    ]


def _origin(config: core.DetectorConfig, init: str, weights: Weights, report: LoadReport) -> str:
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (config.mean, config.std))
    whose = "its own" if "mean" in weights.metadata else "ImageNet's"
    return f"{config.arch} from {init} ({weights.found}), {whose} mean {mean} and std {std}\n{report}"


def _imagenet(arch: str) -> Weights:
    if arch not in BACKBONES:
        create_backbone(arch)  # ends with the list of known ones
    if not timm.models.is_model_pretrained(arch):
        raise UserError(f"timm has no weights of {arch}; pass a file with --init")
    try:
        trunk = timm.create_model(arch, pretrained=True)
    except Exception as error:  # the hub client raises whatever its transport does
        raise UserError(
            f"ImageNet weights of {arch} cannot be fetched from timm's hub ({type(error).__name__}); on a machine "
            f"with network save timm.create_model({arch!r}, pretrained=True).state_dict() with torch.save "
            "and pass that file with --init"
        ) from error
    mean_std = {"mean": trunk.default_cfg["mean"], "std": trunk.default_cfg["std"]}
    return Weights(Path(f"timm/{arch}"), trunk.state_dict(), {"arch": arch, **mean_std})
