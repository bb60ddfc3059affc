"""Detector files: the network with its config and metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from shared.cli import as_plain
from shared.errors import UserError
from shared.model.cells import CellDetector, NetworkConfig
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.model.rivals.rival_detector import RivalConfig, RivalDetector
from shared.weights.safe_load import first_line
from shared.weights.shipped import shipped_or_given
from shared.weights.weights_file import Weights, read, write

DEFAULT_CROP = 448  # px; training crop of detectors whose metadata lack `tile`


@dataclass(frozen=True)
class LoadedDetector:
    """A network with its classes in the order of their labels and the um/px it was trained at."""

    path: Path
    network: CellDetector
    classes: tuple[str, ...]
    mpp: float
    device: torch.device
    tile: int | None = None
    """Fixed side of its input in px, where results depend on it (ViT-Adapter)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Further metadata of the file."""

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> Self:
        """Read `detector.pth`, or `nuclei`, the shipped one; it computes on the GPU if there is one.

        Raises:
            UserError: not a detector file, or its metadata are incomplete.
        """
        path = shipped_or_given(path)
        network, metadata = load_detector(path)
        classes, mpp, tile = _checked(path, network, metadata)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(path, network.to(chosen), classes, mpp, chosen, tile, metadata)


def decoded_by(detector: LoadedDetector, decoder: str | None) -> LoadedDetector:
    """Choose another decoder of a detector's maps; None: its own.

    Raises:
        UserError: it has no maps, or none that this decoder takes.
    """
    if decoder is not None:
        config = detector.network.config
        if not isinstance(config, RivalConfig):
            raise UserError(f"{detector.path} has no maps for --decoder {decoder}; leave --decoder out")
        detector.network.config = replace(config, decoder=decoder)
    return detector


def save_detector(path: Path, detector: CellDetector, metadata: Mapping[str, Any]) -> None:
    """Write a detector atomically; the file holds its config, so that it can be built again.

    Args:
        path: The file.
        detector: The network.
        metadata: `classes` (names), `mpp` (um/px of the training images), `recipe`, `metrics`, `run_id`,
            `git_commit`.
    """
    write(path, detector.state_dict(), {**metadata, "kind": "detector", "config": as_plain(detector.config)})


def load_detector(path: Path) -> tuple[CellDetector, dict[str, Any]]:
    """Read a detector, on the CPU and in eval mode, and its metadata.

    Raises:
        UserError: the file is missing or damaged, or does not hold a detector.
    """
    weights = read(path)
    if weights.metadata.get("kind") != "detector":
        raise UserError(
            f"{path} holds {_contents(weights)}, not a detector; give the detector.pth that "
            "python -m finetune writes"
        )
    try:
        detector = network_of(_config(weights.metadata["config"]))
        detector.load_state_dict(weights.tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is no detector that this version can build ({type(error).__name__}: {first_line(error)}); "
            "train it again, or use the version that wrote it"
        ) from error
    # The layout of the maps (`_prepare`): convolutions then need not reorder their weights for every image.
    return detector.to(memory_format=torch.channels_last).eval(), weights.metadata


def stored_threshold(metadata: Mapping[str, Any]) -> float | None:
    """Return the least probability of a cell that was best on validation, if the file states it."""
    point = metadata.get("operating_point")
    value = point.get("threshold") if isinstance(point, Mapping) else None
    return value if isinstance(value, float) and 0 < value < 1 else None


def network_of(config: NetworkConfig) -> CellDetector:
    """Build the network that a config describes, with random weights."""
    if isinstance(config, RivalConfig):
        return RivalDetector(config)
    assert isinstance(config, DetectorConfig)
    return DPAP2PNet(config)


def _config(fields: Mapping[str, Any]) -> NetworkConfig:
    """Make a config of its JSON form, which has lists for tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return RivalConfig(**values) if "network" in values else DetectorConfig(**values)


def _contents(weights: Weights) -> str:
    try:
        return f"a {weights.arch} backbone (python -m finetune --init takes that)"
    except UserError:
        return f"weights of something else ({', '.join(sorted(weights.tensors)[:3])})"


def _checked(
    path: Path, network: CellDetector, metadata: dict[str, Any]
) -> tuple[tuple[str, ...], float, int | None]:
    """Read classes, um/px and tile from the metadata."""
    if missing := {"classes", "mpp"} - metadata.keys():
        raise UserError(f"the metadata in {path} lack {' and '.join(sorted(missing))}; train the detector again")
    default = network.config.tile(DEFAULT_CROP)  # of detectors that were written without it
    mpp, classes, tile = metadata["mpp"], tuple(map(str, metadata["classes"])), metadata.get("tile", default)
    if not isinstance(mpp, float | int) or not 0 < mpp < float("inf"):
        raise UserError(f"the metadata in {path} give {mpp!r} as mpp; train the detector again")
    if len(classes) != network.config.classes:
        raise UserError(
            f"the metadata in {path} name {len(classes)} classes, its network has {network.config.classes}; "
            "train the detector again"
        )
    return classes, float(mpp), None if tile is None else int(tile)
