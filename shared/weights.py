"""Weights for users: reading any backbone checkpoint into our trunk, writing ours with its metadata.

A weights file is `{"state_dict": tensors, "metadata": JSON string}` (`.pth`) or the same in `.safetensors`.
Metadata of a backbone: `kind` ("backbone"), `arch` (timm name), `method`, `recipe`, `mean`, `std` (of RGB in
0..1), `samples_seen`, `run_id`, `git_commit`, `versions`. Of a detector see `shared/detector.py`.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from shared.atomic import atomic_path, without_nan
from shared.checkpoint import FORMAT as TRAINING_STATE
from shared.command_line import UserError

SUFFIXES = (".pth", ".safetensors")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Under this share of matched trunk tensors a file is taken for another network's.
LEAST_MATCHED = 0.95
# (width, blocks, patch size) of a plain ViT -> timm name.
VITS = {
    (192, 12, 16): "vit_tiny_patch16_224",
    (384, 12, 16): "vit_small_patch16_224",
    (768, 12, 16): "vit_base_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224",
}


@dataclass(frozen=True)
class Weights:
    """Tensors of one file, with what the file says about them."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

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
            UserError: it is no ResNet-50 and no plain ViT with 16 px patches.
        """
        return self.metadata.get("arch") or _recognise(self)


@dataclass(frozen=True)
class LoadReport:
    """Which tensors a trunk took from a file."""

    used: list[str]
    dropped: list[str]  # in the file, not in the trunk
    missing: list[str]  # in the trunk, not in the file: they keep their initial values

    def __str__(self) -> str:
        line = f"{len(self.used)} tensors used, {len(self.dropped)} dropped, {len(self.missing)} missing"
        names = [f"dropped: {_shortened(self.dropped)}"] if self.dropped else []
        names += [f"missing: {_shortened(self.missing)}"] if self.missing else []
        return "; ".join([line, *names])


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
                safetensors.torch.save_file(plain, temporary, metadata={"metadata": text})
            else:
                torch.save({"state_dict": plain, "metadata": text}, temporary)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {path} ({_first_line(error)}); make room and try again") from error


def read(path: Path) -> Weights:
    """Read a weights file: ours, or bare tensors under names (optionally inside "state_dict" or "model").

    Raises:
        UserError: no such file; cut short; holds anything but tensors and plain values; training state.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    content, text = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors under names; give the weights of a backbone")
    return Weights(path, tensors, _metadata(path, text))


def load_into(trunk: nn.Module, weights: Weights) -> LoadReport:
    """Copy a file's tensors into a timm trunk, resampling position embeddings to the trunk's grid.

    Raises:
        UserError: less than 95 % of the trunk's tensors are in the file, or its position embeddings do not fit.
    """
    wanted = trunk.state_dict()
    fitted = {name: _fit(name, tensor, wanted[name]) for name, tensor in weights.tensors.items() if name in wanted}
    usable = {name: tensor for name, tensor in fitted.items() if tensor.shape == wanted[name].shape}
    report = LoadReport(
        used=sorted(usable),
        dropped=sorted(weights.tensors.keys() - usable.keys()),
        missing=sorted(wanted.keys() - usable.keys()),
    )
    if len(report.used) < LEAST_MATCHED * len(wanted):
        raise UserError(
            f"{weights.path} fits only {len(report.used)} of {len(wanted)} tensors of the trunk "
            f"({type(trunk).__name__}); name its architecture with --arch, or give another file"
        )
    if "pos_embed" in weights.tensors and "pos_embed" in report.missing:
        raise UserError(
            f"the position embeddings in {weights.path} {tuple(weights.tensors['pos_embed'].shape)} do not fit a "
            "plain ViT: register tokens or a grid that is not square; give weights without them"
        )
    trunk.load_state_dict(usable, strict=False)
    return report


def check_destination(out: Path) -> None:
    """Find out before the training, not after it, that its weights cannot be written to `out`.

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
    """Copy a weights file atomically to where users look for it; another run's file is kept as .bak."""
    if destination.exists() and _run_id(destination) != _run_id(path):
        destination.replace(destination.with_name(destination.name + ".bak"))
    if destination.suffix == path.suffix:
        with atomic_path(destination) as temporary:
            shutil.copyfile(path, temporary)
    else:
        weights = read(path)
        write(destination, weights.tensors, weights.metadata)


def _metadata(path: Path, text: str | None) -> dict[str, Any]:
    """What a file says about its tensors, checked as far as others rely on it."""
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


def _run_id(path: Path) -> str | None:
    try:
        return read(path).metadata.get("run_id")
    except UserError:
        return None


def _read_torch(path: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types, with advice that would be unsafe to follow
        raise UserError(
            f"{path} is cut short or holds more than tensors, so it is not loaded; copy it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors under names")
    if content.get("format") == TRAINING_STATE:
        raise UserError(f"{path} is the training state of a run; give the weights it exported (NAME.pth)")
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), Mapping):
            text = content.get("metadata")
            return content[wrapper], text if isinstance(text, str) else None
    return content, None


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("metadata")
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error


def _fit(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """Position embeddings of another image size, or with a class token that the trunk lacks, made to fit."""
    if name != "pos_embed" or tensor.shape == target.shape or tensor.ndim != 3:
        return tensor
    tokens, wanted = tensor.shape[1], target.shape[1]
    prefix, wanted_prefix = _prefix_tokens(tokens), _prefix_tokens(wanted)
    if prefix is None or wanted_prefix is None or wanted_prefix > prefix:
        return tensor
    side = round((wanted - wanted_prefix) ** 0.5)
    grid = resample_abs_pos_embed(tensor[:, prefix:].float(), [side, side], num_prefix_tokens=0)
    return torch.cat([tensor[:, prefix - wanted_prefix : prefix].float(), grid], dim=1)


def _prefix_tokens(tokens: int) -> int | None:
    """How many tokens stand before a square grid: none, or one class token."""
    return next((n for n in (0, 1) if round((tokens - n) ** 0.5) ** 2 == tokens - n), None)


def _recognise(weights: Weights) -> str:
    names = weights.tensors.keys()
    patch = weights.tensors.get("patch_embed.proj.weight")
    if patch is not None:
        blocks = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
        if (vit := VITS.get((patch.shape[0], blocks, patch.shape[-1]))) is not None:
            return vit
    # Blocks of the third stage: 6 in ResNet-50, 23 in ResNet-101.
    if {"layer1.0.conv3.weight", "layer3.5.conv1.weight"} <= names and "layer3.6.conv1.weight" not in names:
        return "resnet50"
    raise UserError(
        f"{weights.path} is no ResNet-50 and no plain ViT with 16 px patches under timm's names "
        f"(it begins with {', '.join(sorted(weights.tensors)[:3])})"
    )


def _shortened(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
