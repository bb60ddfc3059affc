"""Load a backbone from a weights file, checkpoint or run folder, with its preprocessing."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import UserError
from shared.training import checkpoint
from shared.weights import weights_file
from shared.weights.safe_load import load_content
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.methods import Method, mae, trunks
from ssl_pretrain.methods.trunks import create_trunk
from ssl_pretrain.recipes import RECIPES

# Side of the images that weights without our metadata are shown, in px.
FOREIGN_SIZE = 224


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone, ready to be measured."""

    name: str
    trunk: nn.Module
    """Network in eval mode, on the CPU."""
    arch: str
    crop: Crop
    """Size and interpolation of its input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    samples_seen: int | None = None
    """Images it was trained on; None: unknown."""
    may_collapse: bool = True
    """True if representations of its method can collapse."""
    method: Method | None = None
    """All networks, where there are more than the backbone."""


def open_subject(place: Path) -> LoadedBackbone:
    """Open the backbone in a weights file (ours or another project's), a checkpoint or a run folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if place.is_dir():
        return _of_run(place)
    if checkpoint.NAME.fullmatch(place.name) and place.is_file():
        content = load_content(place)[0]
        if content.get("format") != checkpoint.FORMAT:
            raise UserError(f"{place} is no checkpoint of a run; give one, or a weights file, or a run folder")
        return _of_state(str(place), place.parent, content)
    return _of_weights(weights_file.read(place))


def untrained(like: LoadedBackbone) -> LoadedBackbone:
    """Make the same network with fresh weights, for comparison."""
    torch.manual_seed(0)
    trunk = create_trunk(like.arch, like.crop.size).eval()
    name = f"untrained {like.arch}"
    return LoadedBackbone(
        name, trunk, like.arch, like.crop, like.mean, like.std, samples_seen=0, may_collapse=False
    )


def _of_run(folder: Path) -> LoadedBackbone:
    config = _config(folder)
    state = checkpoint.resume(folder, config["name"])
    if state is not None:
        return _of_state(str(folder), folder, state)
    exported = folder / Path(str(config["out"])).name
    if not exported.is_file():
        raise UserError(f"the run in {folder} has neither a checkpoint nor weights yet; wait for the first")
    return dataclasses.replace(_of_weights(weights_file.read(exported)), name=str(folder))


def _of_state(name: str, folder: Path, state: Any) -> LoadedBackbone:
    """Build the networks of a training state, as the run's `config.json` describes them."""
    config = _config(folder)
    if config["name"] not in RECIPES:
        raise UserError(f"{folder} is a run of the recipe {config['name']!r}, which is not known here")
    settings = _replaced(RECIPES[config["name"]].method, config["method"])
    method: Method = settings.build().eval()
    try:
        method.load_state_dict(state["networks"])
    except RuntimeError as error:  # it was moved here from another run
        raise UserError(
            f"the checkpoint {name} does not fit the config.json beside it; give its own run"
        ) from error
    mean, std = _normalisation(folder, config)
    return LoadedBackbone(
        name,
        method.backbone(),
        settings.arch,
        settings.crops[0],
        mean,
        std,
        samples_seen=state["step"] * config["batch_size"],
        may_collapse=method.may_collapse,
        method=method,
    )


def _normalisation(folder: Path, config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and deviations of a run: those of its initial weights, of its shards or of ImageNet."""
    if config.get("init"):
        found = weights_file.read(Path(config["init"]))
        return found.mean, found.std
    if config["normalisation"] != "shards":
        return IMAGENET_MEAN, IMAGENET_STD
    remembered = _read_json(folder / "shards.json")
    if not {"mean", "std"} <= remembered.keys():
        raise _damaged(folder / "shards.json")
    return tuple(remembered["mean"]), tuple(remembered["std"])


def _of_weights(found: weights_file.Weights) -> LoadedBackbone:
    told = found.metadata
    if told.get("kind") == "detector":
        raise UserError(f"{found.path} is a whole detector; give the weights of a backbone")
    arch = found.arch
    if arch not in trunks.RESNETS and not trunks.is_vit(arch):
        raise UserError(f"{found.path} holds a {arch}; only ResNet-50 and plain ViTs are inspected")
    share = told.get("largest_crop", 1.0)
    interpolation = told.get("interpolation", "bicubic")
    crop = Crop(size=told.get("image_size", FOREIGN_SIZE), scale=(share, share), interpolation=interpolation)
    trunk = create_trunk(arch, crop.size).eval()
    weights_file.load_into(trunk, found)
    return LoadedBackbone(
        str(found.path),
        trunk,
        arch,
        crop,
        found.mean,
        found.std,
        samples_seen=told.get("samples_seen"),
        may_collapse=told.get("method") != mae.METHOD,
    )


def _replaced(settings: Any, saved: dict[str, Any]) -> Any:
    """Fill a config with the values of its saved form: JSON has lists for tuples."""
    names = {field.name for field in dataclasses.fields(settings)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return dataclasses.replace(settings, **{name: value for name, value in values.items() if name in names})


def _config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if not {"name", "method", "out", "batch_size", "normalisation"} <= config.keys():
        raise UserError(f"{folder} is no run folder of ssl_pretrain; give one, or a weights file")
    if not isinstance(config["method"], dict) or not isinstance(config["batch_size"], int):
        raise _damaged(folder / "config.json")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path.parent} is no run folder (it has no {path.name}); give one, or a weights file")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; give the weights that the run exported instead")
