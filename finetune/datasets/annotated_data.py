"""What every reader of annotated data returns: tiles with their cells, in one convention."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from shared.command_line import UserError

SPLITS = ("train", "val", "test")
# Pillow's modes that become RGB without changing a colour: 16-bit images would be cut off at 255.
EIGHT_BIT = ("RGB", "RGBA", "L", "P", "1")


@dataclass(frozen=True)
class Tile:
    """One annotated image. Points are px with the outer corner of the first pixel as origin."""

    image: Path
    slide: str
    """Key of the slide it was cut from: tiles of one slide stay in one split."""
    size: tuple[int, int]
    """Width and height in px."""
    points_N2: np.ndarray
    labels_N: np.ndarray
    """Class of each cell, 0..C-1."""

    def read(self) -> np.ndarray:
        """The image as uint8 (H, W, 3)."""
        with Image.open(self.image) as image:
            return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class AnnotatedData:
    """Tiles per split, with what is true of all of them."""

    folder: Path
    mpp: float
    """Resolution of the images, um/px."""
    classes: tuple[str, ...]
    splits: dict[str, list[Tile]]

    def __str__(self) -> str:
        parts = [
            f"{name} {len(tiles)} tiles / {sum(len(tile.labels_N) for tile in tiles):,} cells"
            for name, tiles in self.splits.items()
        ]
        return f"{self.folder}: {', '.join(parts)}; {', '.join(self.classes)}; {self.mpp:g} um/px"


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in px of an image that can be decoded as 8-bit RGB.

    Raises:
        UserError: the file is not an image, is cut short, or holds other pixels.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be opened as an image; remove it or write it again") from error
    if image.mode not in EIGHT_BIT:
        raise UserError(
            f"{path} has pixels of mode {image.mode}, which do not convert to 8-bit RGB without loss; "
            "write it as an 8-bit RGB image"
        )
    return image.size


def split_by_slide(tiles: Sequence[Tile], shares: dict[str, float], seed: int = 0) -> dict[str, list[Tile]]:
    """Deal whole slides into splits so that their tile counts come close to the shares.

    The order of the slides is a hash of their keys and the seed: adding a slide moves few of the others.
    """
    slides = sorted({tile.slide for tile in tiles}, key=lambda key: _hash(key, seed))
    counts = {key: sum(tile.slide == key for tile in tiles) for key in slides}
    dealt: dict[str, set[str]] = {name: set() for name in shares}
    filled = dict.fromkeys(shares, 0)
    for key in slides:
        neediest = max(shares, key=lambda name: shares[name] * len(tiles) - filled[name])
        dealt[neediest].add(key)
        filled[neediest] += counts[key]
    return {name: [tile for tile in tiles if tile.slide in keys] for name, keys in dealt.items()}


def _hash(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
