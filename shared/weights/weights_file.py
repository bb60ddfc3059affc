"""Weights for users: reading any backbone checkpoint into our trunk, writing ours with its metadata.

A weights file is `{"state_dict": tensors, "metadata": JSON string}` (`.pth`) or the same in `.safetensors`.
Metadata of a backbone: `kind` ("backbone"), `arch` (timm name), `method`, `recipe`, `mean`, `std` (of RGB in
0..1), `samples_seen`, `run_id`, `git_commit`, `versions`. Of a detector see `shared/model/dpa_p2pnet.py`.
A file without our metadata is another project's: `shared/weights/foreign_layouts.py` finds the trunk in it.
"""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.files import atomic_path, keep_aside, without_nan
from shared.training.checkpoint import FORMAT as TRAINING_STATE
from shared.weights.foreign_layouts import find_trunk
from shared.weights.resize import fit
from shared.weights.safe_load import first_line, load_content
from shared.weights.shipped import shipped_or_given
from shared.weights.vit_families import (
    DINOV3_VITS,
    H_OPTIMUS_MEAN,
    H_OPTIMUS_STD,
    LAYER_SCALED_VITS,
    VITS,
    is_h_optimus,
)

SUFFIXES = (".pth", ".safetensors")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Under this share of matched trunk tensors a file is taken for another network's.
LEAST_MATCHED = 0.95
# Where hubs keep a model's normalisation (timm; transformers), and what they call its weights.
HUB_SETTINGS = ("config.json", "preprocessor_config.json")
HUB_STEMS = ("model", "pytorch_model")
# Tensors without which a trunk's features are noise, however many others match.
ESSENTIAL = ("conv1.weight", "patch_embed.proj.weight", "pos_embed")
# Parts of a network that change its features: a trunk that lacks some of the file's is another network.
PARTS = re.compile(r"(?:blocks|layer[1-4]|conv1|bn1|patch_embed|norm_pre)\.")
# Batch norms count their batches, for averages of a kind that no network here uses; old files do not hold it.
COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Weights:
    """Tensors of one file, with what the file says about them."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    set_aside: tuple[str, ...] = ()
    """Names of further tensors in the file, which are not the trunk's."""
    found: str = "timm names"
    """Description of the names' origin and their place in the file."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means (RGB, 0..1) the network was trained with; ImageNet's where the file is silent."""
        red, green, blue = self.metadata.get("mean", IMAGENET_MEAN)
        return red, green, blue

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations, as `mean`."""
        red, green, blue = self.metadata.get("std", IMAGENET_STD)
        return red, green, blue

    @property
    def arch(self) -> str:
        """The trunk's timm name, from the metadata or else from the tensors' names and shapes.

        Raises:
            UserError: it is no ResNet-50 and no plain ViT of a known size.
        """
        return self.metadata.get("arch") or _recognise(self)


@dataclass(frozen=True)
class LoadReport:
    """Tensors that a trunk took from a file, and those it did not."""

    used: list[str]
    dropped: list[str]  # in the file, not in the trunk
    missing: list[str]  # in the trunk, not in the file: they keep their initial values

    def __str__(self) -> str:
        """Format a table: how many tensors of which parts."""
        rows = {"used": self.used, "dropped": self.dropped, "missing": self.missing}
        return "\n".join(f"  {title:<8}{len(names):>4}  {_parts(names)}".rstrip() for title, names in rows.items())


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a weights file atomically; the suffix (.pth or .safetensors) chooses the format.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(without_nan(dict(metadata)), ensure_ascii=False)
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                # Not save_file, whose files only their owner may read.
                temporary.write_bytes(safetensors.torch.save(plain, metadata={"metadata": text}))
            else:
                torch.save({"state_dict": plain, "metadata": text}, temporary)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {path} ({first_line(error)}); make room and try again") from error


def read(path: Path) -> Weights:
    """Read a weights file: ours, also by the name of the shipped one, or any whose trunk `find_trunk` recognises.

    Raises:
        UserError: no such file; cut short; holds anything but tensors and plain values; training state.
    """
    path = shipped_or_given(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the weights file in it")
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; check the path")
    content, text = load_content(path)
    if content.get("format") == TRAINING_STATE:
        raise UserError(f"{path} is the training state of a run; give the weights it exported (NAME.pth)")
    if isinstance(content.get("metadata"), str) and isinstance(content.get("state_dict"), Mapping):
        content, text = content["state_dict"], content["metadata"]
    if text is None:
        trunk = find_trunk(content)
        known = {"mean": H_OPTIMUS_MEAN, "std": H_OPTIMUS_STD} if is_h_optimus(trunk.tensors) else {}
        weights = Weights(path, trunk.tensors, known | _published_with(path), trunk.set_aside, trunk.found)
    else:
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        weights = Weights(path, tensors, _metadata(path, text))
    if not weights.tensors:
        raise UserError(f"{path} holds no tensors under names; give the weights of a backbone")
    return weights


def load_into(trunk: nn.Module, weights: Weights) -> LoadReport:
    """Copy a file's tensors into a timm trunk.

    Position embeddings are resampled to the trunk's grid, and the kernel of the patch embedding to its patches.

    Raises:
        UserError: less than 95 % of the trunk's tensors are in the file, one of the first layers is not, or the
            file has more of a network than the trunk.
    """
    wanted = trunk.state_dict()
    fitted = {name: fit(name, wanted[name], weights.tensors) for name in weights.tensors.keys() & wanted.keys()}
    usable = {name: tensor for name, tensor in fitted.items() if tensor.shape == wanted[name].shape}
    report = LoadReport(
        used=sorted(usable),
        dropped=sorted([*(weights.tensors.keys() - usable.keys()), *weights.set_aside]),
        missing=sorted(name for name in wanted.keys() - usable.keys() if not name.endswith(COUNTER)),
    )
    _require_match(trunk, weights, report)
    trunk.load_state_dict(usable, strict=False)
    return report


def _require_match(trunk: nn.Module, weights: Weights, report: LoadReport) -> None:
    used, total = len(report.used), len(report.used) + len(report.missing)
    if used < LEAST_MATCHED * total:
        raise UserError(
            f"{weights.path} fits only {used} of {total} tensors of the trunk "
            f"({type(trunk).__name__}); give the architecture that it was made with as --arch, or another file"
        )
    for name in ESSENTIAL:
        if name in report.missing:
            shape = tuple(weights.tensors[name].shape) if name in weights.tensors else "(none)"
            raise UserError(
                f"{name} in {weights.path} {shape} does not fit the trunk, which takes RGB images, and learned "
                "position embeddings only of a square grid; give other weights"
            )
    # A trunk may end before the file's last stages, which do not change its features.
    stages = {name.split(".")[0] for name in report.used}
    unknown = [name for name in report.dropped if name in weights.tensors and PARTS.match(name)]
    more = [name for name in unknown if not name.startswith("layer") or name.split(".")[0] in stages]
    if more:
        raise UserError(
            f"{weights.path} is another network than the trunk ({type(trunk).__name__}), which lacks its "
            f"{more[0]} and {len(more) - 1} more; give the architecture that it was made with as --arch, or "
            "another file"
        )


def check_destination(out: Path) -> None:
    """Check before training that its weights can be written to `out`.

    Raises:
        UserError: another suffix than .pth or .safetensors, a folder, or no permission.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a weights file in it")
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out} does not end in {' or '.join(SUFFIXES)}; give the name of a weights file")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written ({error.strerror}: {parent}); give another place"
        ) from error


def publish(path: Path, destination: Path) -> None:
    """Copy a weights file atomically to its destination; another run's file is kept as .bak.

    Raises:
        UserError: the disk is full or cannot be written; what was there before stays.
    """
    try:
        with atomic_path(destination) as temporary:
            if destination.suffix == path.suffix:
                shutil.copyfile(path, temporary)
            else:
                weights = read(path)
                write(temporary.with_suffix(destination.suffix), weights.tensors, weights.metadata)
                temporary.with_suffix(destination.suffix).replace(temporary)
            if destination.exists() and _run_id(destination) != _run_id(path):
                keep_aside(destination)
    except OSError as error:
        raise UserError(f"cannot write {destination} ({error.strerror}); the weights are in {path}") from error


def _metadata(path: Path, text: str | None) -> dict[str, Any]:
    """Parse and check the metadata of a file."""
    try:
        metadata = json.loads(text) if text else {}
        if not isinstance(metadata, dict):
            raise TypeError("it is no mapping")
        for name, least in (("mean", 0.0), ("std", 1e-6)):
            values = metadata.get(name, IMAGENET_MEAN)
            if not (len(values) == 3 and all(least <= value <= 1 for value in values)):
                raise ValueError(f"{name} is not three numbers between 0 and 1")
    except (ValueError, TypeError) as error:
        raise UserError(f"the metadata in {path} are damaged ({error}); write the file again") from error
    return metadata


def _published_with(path: Path) -> dict[str, Any]:
    """Mean and std from the settings that model hubs keep beside `model.safetensors` or `pytorch_model.bin`."""
    found: dict[str, Any] = {}
    for name in HUB_SETTINGS if path.stem in HUB_STEMS else ():
        settings = path.with_name(name)
        if settings.is_file():
            try:
                content = dict(json.loads(settings.read_text(encoding="utf-8")))
                content |= content.get("pretrained_cfg") or {}  # timm's are one level down
            except (ValueError, TypeError) as error:
                raise UserError(f"{settings}, beside the weights, is damaged ({error}); copy it again") from error
            found |= {key: content[key] for key in ("mean", "std") if key in content}
            found |= {key: content[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in content}
    return _metadata(path, json.dumps(found))


def _run_id(path: Path) -> str | None:
    try:
        return read(path).metadata.get("run_id")
    except UserError:
        return None


def _recognise(weights: Weights) -> str:
    names = weights.tensors.keys()
    patch = weights.tensors.get("patch_embed.proj.weight")
    size = ""
    if patch is not None and patch.ndim == 4:
        blocks = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
        if (vit := _known_vit(names, patch.shape[0], blocks)) is not None:
            return vit
        size = f"it has {blocks} blocks of width {patch.shape[0]}; "
    # Blocks of the third stage: 6 in ResNet-50, 23 in ResNet-101.
    if {"layer1.0.conv3.weight", "layer3.5.conv1.weight"} <= names and "layer3.6.conv1.weight" not in names:
        return "resnet50"
    raise UserError(
        f"{weights.path} is no ResNet-50 and no plain ViT of a known size "
        f"({size}its names begin with {', '.join(sorted(names)[:3])}); give weights of one of "
        f"resnet50, {', '.join([*VITS.values(), *LAYER_SCALED_VITS.values(), *DINOV3_VITS.values()])}"
    )


def _known_vit(names: Collection[str], width: int, blocks: int) -> str | None:
    """Name a ViT by its sizes and parts."""
    if "blocks.0.gamma_1" in names and "pos_embed" not in names:
        return DINOV3_VITS.get((width, blocks, "blocks.0.mlp.fc1_g.weight" in names))
    known = LAYER_SCALED_VITS if "blocks.0.ls1.gamma" in names else VITS
    return known.get((width, blocks))


def _parts(names: Iterable[str], most: int = 8) -> str:
    """Parts of a network with how many tensors each has: `blocks.* (144), patch_embed.proj (2), pos_embed`."""
    counts = Counter(_part(name) for name in names)
    shown = [part if count == 1 else f"{part} ({count})" for part, count in counts.items()]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _part(name: str) -> str:
    """Return the first two words of a tensor's place, a number standing for all of its kind."""
    words = re.sub(r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)$", "", name).split(".")[:2]
    return ".".join("*" if word.isdecimal() else word for word in words)
