"""`--init`: a detector starts from another detector, or its trunk from a backbone's or random weights."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.model.backbones import BACKBONES, create_backbone
from shared.model.cells import CellDetector, NetworkConfig
from shared.model.detector_file import load_detector, network_of
from shared.model.dpa_p2pnet import DetectorConfig
from shared.weights.weights_file import LoadReport, Weights, load_into, read

DEFAULT_TRUNK = "resnet50"
# Settings of the data, which a detector that training goes on from does not decide.
OWN = ("classes", "interval", "distinct", "mpp")
BACKGROUND = "\0"  # last output, a name that no class can have


class Start(NamedTuple):
    """A detector before its first step."""

    detector: CellDetector
    loaded: set[str]
    """The trunk's tensors that came with the weights."""
    trunk_source: str
    """Description of the weights: file, layout, tensors used."""


def initial_detector(config: NetworkConfig, init: str, arch: str | None, classes: Sequence[str] = ()) -> Start:
    """Build the detector that training starts from.

    Args:
        config: The detector wanted; `arch`, `mean` and `std` are replaced by those of the weights.
        init: Path of a weights file (`shared.weights.weights_file.read` says whose), "imagenet" (timm's hub) or
            "random".
        arch: Name of the trunk in `shared.model.backbones`; None: from the weights, or ResNet-50.
        classes: Names of the classes, by which the outputs of another detector are kept.

    Raises:
        UserError: no such file, another network's file, or no way to the hub.
    """
    if init == "random":
        config = config.with_trunk(arch or config.trunk or DEFAULT_TRUNK)
        return Start(network_of(config), set(), f"{_name(config)}, random weights")
    without_trunk = UserError(f"the recipe's network has no trunk for the weights --init {init}; leave --init out")
    if config.trunk == "" and not Path(init).is_file():
        raise without_trunk
    weights = _imagenet(arch or config.trunk or DEFAULT_TRUNK) if init == "imagenet" else read(Path(init))
    if weights.metadata.get("kind") == "detector":
        return _continued(config, Path(init), arch, classes)
    if config.trunk == "":
        raise without_trunk
    config = config.with_trunk(arch or config.trunk or weights.arch, weights.mean, weights.std)
    detector = network_of(config)
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


def _continued(config: NetworkConfig, path: Path, arch: str | None, classes: Sequence[str]) -> Start:
    """Start from a detector with its architecture; outputs of classes that it does not have start at random.

    Raises:
        UserError: the trunk or the fields of view wanted are not those of the detector.
    """
    source, metadata = load_detector(path)
    if getattr(source.config, "network", None) != getattr(config, "network", None):
        raise UserError(
            f"{path} is a detector of another network; give one of the recipe's, or weights of a trunk"
        )
    for option, wanted, given in (
        ("arch", arch, _name(source.config)),
        ("views", config.views, source.config.views),
    ):
        if wanted is not None and wanted != given:
            raise UserError(
                f"{path} is a detector with --{option} {given}, not {wanted}; give the same or other weights"
            )
    own = {name: getattr(config, name) for name in OWN if hasattr(config, name)}
    if not own.get("distinct", True):  # without the rule, what it learnt to leave to neighbours is there twice
        del own["distinct"]
    detector = network_of(dataclasses.replace(source.config, **own))
    known = [*map(str, metadata.get("classes", ())), BACKGROUND]
    wanted_classes = [*classes, BACKGROUND]
    state, fresh = detector.state_dict(), []
    outputs, by_class = _class_outputs(state), _shaped_by_classes(detector.config)
    for name, tensor in source.state_dict().items():
        if name in outputs:
            _copy_classes(tensor, known, state[name], wanted_classes)
        elif tensor.shape == state[name].shape and (known == wanted_classes or name not in by_class):
            state[name] = tensor
        else:
            fresh.append(name)
    detector.load_state_dict(state)
    kept, new = ([each for each in classes if (each in known) == is_kept] for is_kept in (True, False))
    report = f"detector {path} ({_name(source.config)}, all options of its architecture)"
    report += f"\n  classes kept  {', '.join(kept) or 'none'}\n  classes new   {', '.join(new) or 'none'}"
    report += f"\n  random        {', '.join(fresh)}" if fresh else ""
    return Start(detector, {name for trunk in detector.trunks()[:1] for name in trunk.state_dict()}, report)


def _shaped_by_classes(config: NetworkConfig) -> set[str]:
    """Find the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        one, other = (
            network_of(dataclasses.replace(config, classes=number)).state_dict()
            for number in (config.classes, config.classes + 1)
        )
    return {name for name in one if one[name].shape != other[name].shape}


def _class_outputs(state: Mapping[str, Tensor]) -> set[str]:
    """Find weights and biases of the last layers of the classification heads."""
    matches = [match for name in state if (match := re.match(r"(.*\bclassify)\.(\d+)\.\w+$", name))]
    last = {match[1]: max(int(other[2]) for other in matches if other[1] == match[1]) for match in matches}
    return {match[0] for match in matches if int(match[2]) == last[match[1]]}


def _copy_classes(source: Tensor, known: Sequence[str], target: Tensor, wanted: Sequence[str]) -> None:
    """Copy the rows of the classes that two output layers share; a class has a row for each proposal of a cell."""
    if len(source) % len(known) or len(source) // len(known) != len(target) // len(wanted):
        return
    rows_by_class, target_by_class = (
        rows.unflatten(0, (len(names), -1)) for rows, names in ((source, known), (target, wanted))
    )
    for index, name in enumerate(wanted):
        if name in known:
            target_by_class[index] = rows_by_class[known.index(name)]


def _origin(config: NetworkConfig, init: str, weights: Weights, report: LoadReport) -> str:
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (config.mean, config.std))
    whose = "its own" if "mean" in weights.metadata else "ImageNet's"
    return f"{_name(config)} from {init} ({weights.found}), {whose} mean {mean} and std {std}\n{report}"


def _name(config: NetworkConfig) -> str:
    """Name of the trunk."""
    return config.arch if isinstance(config, DetectorConfig) else str(config.trunk)


def _imagenet(arch: str) -> Weights:
    if arch not in BACKBONES and not timm.models.is_model(arch):
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
