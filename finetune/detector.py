"""A trained detector with what it was trained on; `from finetune import Detector` gives this class."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from finetune.training.augment import Config as Augment
from shared.errors import UserError
from shared.model import dpa_p2pnet as core
from shared.model.backbones import sees_whole_image
from shared.model.decoders import PYRAMID_STRIDES
from shared.model.dpa_p2pnet import load_detector

if TYPE_CHECKING:
    from shared.model.cells import CellSet


@dataclass(frozen=True)
class Detector:
    """Network, classes in the order of its labels, um/px it was trained at."""

    path: Path
    network: core.Detector
    classes: tuple[str, ...]
    mpp: float
    device: torch.device
    tile: int | None = None
    """Side in px of the images it must be given, where its results depend on that (ViT-Adapter)."""

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> "Detector":
        """Read `detector.pth`; it computes on the GPU if there is one.

        Raises:
            UserError: no detector file, or one that does not say what it detects.
        """
        path = Path(path)
        network, metadata = load_detector(path)
        classes, mpp, tile = _checked(path, network, metadata)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(path, network.to(chosen), classes, mpp, chosen, tile)

    def predict(self, image: np.ndarray | Image.Image | str | Path, mpp: float | None = None) -> "CellSet":
        """Cells in an image of any size: points in its px (corner origin), labels, probabilities.

        Args:
            image: uint8 RGB (height, width, 3), a PIL image, or the path of one.
            mpp: Its um/px, if that is not what the detector was trained at.

        Raises:
            UserError: it is no image, or far coarser than what the detector was trained at.
        """
        from finetune.predict.in_memory import predict_image  # heavier than loading

        return predict_image(self, image, mpp)


def tile_to_predict(config: core.Config, crop: int) -> int | None:
    """The side of image that a detector has to be given; None if its results do not depend on it.

    A ViT sees its whole input, and its position embeddings are resampled to it; how far a wider view reaches
    depends on the image it is a view of. Both are given what they were trained on, in whole cells of each level.

    Args:
        config: The detector.
        crop: Side in px of the crops it was trained on.
    """
    if not sees_whole_image(config.arch) and config.views == 1:
        return None
    step = math.lcm(PYRAMID_STRIDES[-1], config.interval)
    return math.ceil(crop / step) * step


def _checked(
    path: Path, network: core.Detector, metadata: dict[str, Any]
) -> tuple[tuple[str, ...], float, int | None]:
    """Classes, um/px and tile, as far as others rely on them."""
    if missing := {"classes", "mpp"} - metadata.keys():
        raise UserError(f"the metadata in {path} lack {' and '.join(sorted(missing))}; train the detector again")
    default = tile_to_predict(network.config, Augment().crop)  # of detectors that were written without it
    mpp, classes, tile = metadata["mpp"], tuple(map(str, metadata["classes"])), metadata.get("tile", default)
    if not isinstance(mpp, float | int) or not 0 < mpp < float("inf"):
        raise UserError(f"the metadata in {path} give {mpp!r} as mpp; train the detector again")
    if len(classes) != network.config.classes:
        raise UserError(
            f"the metadata in {path} name {len(classes)} classes, its network has {network.config.classes}; "
            "train the detector again"
        )
    return classes, float(mpp), None if tile is None else int(tile)
