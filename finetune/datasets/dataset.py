"""Annotated data as every reader returns it: splits of tiles with their cells."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared.wsi.rgb import open_rgb

SPLITS = ("train", "val", "test")
# Steps that training omits if a split is missing.
LEFT_OUT = {
    "val": "training publishes the last weights, not those of the best validation score",
    "test": "no test score is computed at its end",
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Names of tiles that show their slide: a TCGA barcode, or the slide's name before the x and y of the tile.
SLIDE_IN_NAME = re.compile(
    r"(?P<barcode>TCGA-\w{2}-\w{4}(-\w{3}-\w{2}-\w+)?)\b.*"
    r"|(?P<name>.+?)[\s_-]*(\[?x=?|[\s_-])\d+[,\s_-]+(y=?)?\d+([,\s_\]-].*)?"
)
# Matching distance of the scores for data sets without a published one, um (paper, Table 2: 6 px at 0.5 um/px).
RADIUS_UM = 3.0


@dataclass(frozen=True)
class Tile:
    """Annotated image; points are px from the outer corner of the first pixel."""

    image: Path
    slide: str
    """Key of its slide; tiles of one slide stay in one split."""
    size: tuple[int, int]
    """Width and height in px, as `read` returns them."""
    points_N2: np.ndarray
    labels_N: np.ndarray
    """Class of each cell, 0..C-1."""
    reduction: int = 1
    """Downsampling of the file on reading: each px is the mean of reduction x reduction px of it."""
    wider: tuple[Path, ...] = ()
    """Images of ..., 4 and 2 times the width around the same centre, widest first."""
    patient: str = ""
    """Patient of the slide; empty if not stated."""

    @property
    def group(self) -> str:
        """Key of the tiles that stay in one split: the patient if stated, else the slide."""
        return self.patient or self.slide

    def read(self) -> np.ndarray:
        """Read the image as uint8 (H, W, 3)."""
        return self._pixels(self.image)

    def views(self, count: int) -> tuple[Path, ...]:
        """Return paths of `count` fields of view, widest first, the annotated image last."""
        return (*self.wider[len(self.wider) - count + 1 :], self.image)

    def read_views(self, count: int) -> np.ndarray:
        """Read the fields of view as uint8 (K, H, W, 3)."""
        return np.stack([self._pixels(path) for path in self.views(count)])

    def _pixels(self, path: Path) -> np.ndarray:
        return np.asarray(open_rgb(path).reduce(self.reduction))


@dataclass(frozen=True)
class OfficialRule:
    """Score of a data set's own challenge, implemented in `finetune.scoring.challenge`."""

    name: str
    labels: tuple[int, ...] = ()
    """Our labels of the score's classes, in the order of the score."""
    absent: str = ""
    """Reason that these data cannot be scored by it; empty if they can."""


@dataclass(frozen=True)
class AnnotatedData:
    """Tiles of each split, and facts common to all of them."""

    folder: Path
    mpp: float
    """Resolution of the images, um/px."""
    classes: tuple[str, ...]
    splits: dict[str, list[Tile]]
    radius_um: float = RADIUS_UM
    """Matching distance of the published scores, um."""
    official: OfficialRule | None = None
    """Score of the data set's own challenge, if its rule differs from ours."""
    classes_found: bool = False
    """True if no description names the classes: they are those found in the annotations."""
    ignored_cells: dict[str, int] = field(default_factory=dict)
    """Number of cells of QuPath's ignored classes that were left out, by class."""

    def digest(self, views: int = 1) -> str:
        """Hash tiles, sizes, splits, cells and classes, without the pixels.

        Args:
            views: Fields of view that are used.
        """
        summed = hashlib.sha256(f"{self.mpp} {self.classes}".encode())
        for name, tiles in self.splits.items():
            for tile in tiles:
                path = tile.image.relative_to(self.folder).as_posix()
                wider = " ".join(view.name for view in tile.views(views)[:-1])
                summed.update(f"{name} {path} {tile.slide} {tile.size} {wider}".encode())
                summed.update(tile.points_N2.tobytes() + tile.labels_N.tobytes())
        return summed.hexdigest()

    def __str__(self) -> str:
        parts = [
            f"{name} {len(tiles)} tiles / {sum(len(tile.labels_N) for tile in tiles):,} cells"
            for name, tiles in self.splits.items()
        ]
        summary = f"{self.folder}: {', '.join(parts)}; {', '.join(self.classes)}; {self.mpp:g} um/px"
        return "\n".join([summary, *self.notes()])

    @property
    def validates(self) -> bool:
        """True if a validation tile has cells; without any, all networks would score the same."""
        return any(len(tile.labels_N) for tile in self.splits.get("val", []))

    def notes(self) -> list[str]:
        """List problems of the splits that training should know of, a line each."""
        notes = []
        missing = [name for name in LEFT_OUT if "train" in self.splits and name not in self.splits]
        if missing:
            effects = ", and ".join(LEFT_OUT[name] for name in missing)
            tiles = " and no ".join(f"{name} tiles" for name in missing)
            notes.append(f"note: {self.folder} has no {tiles}: {effects}; add tiles of other slides for that")
        if "val" in self.splits and not self.validates:
            notes.append(f"note: the val tiles of {self.folder} have no cells: {LEFT_OUT['val']}; annotate some")
        if self.ignored_cells:
            counts = ", ".join(
                f"{count:,} cells of {name!r}" for name, count in sorted(self.ignored_cells.items())
            )
            notes.append(f"note: left out of {self.folder}, because QuPath's ignored classes end in *: {counts}")
        if leak := self._leak():
            notes.append(leak)
        if rare := self._rare_classes() if self.classes_found else []:
            notes.append(
                f"note: of the classes found in {self.folder}, these are in only one split or not in train: "
                f"{', '.join(rare)}; correct misspelt ones, or name the classes in dataset.json or with --classes"
            )
        return notes

    def _leak(self) -> str:
        """Report names that show one slide in several splits, among tiles whose slide is not stated."""
        tiles_of: dict[str, dict[str, str]] = {}
        for split, tiles in self.splits.items():
            for tile in tiles:
                path = tile.image.relative_to(self.folder).as_posix()
                if tile.slide == path and (parts := SLIDE_IN_NAME.fullmatch(tile.image.stem)):
                    tiles_of.setdefault(parts["barcode"] or parts["name"], {})[split] = path
        leaks = {slide: paths for slide, paths in tiles_of.items() if len(paths) > 1}
        if not leaks:
            return ""
        slide, paths = next(iter(leaks.items()))
        entries = ", ".join(f'"{path}": "{slide}"' for path in list(paths.values())[:2])
        return (
            f"note: to judge by names, tiles of {len(leaks)} slides are in several splits of {self.folder} "
            f"({slide}: {' and '.join(paths)}), which makes scores too good; name the slide of every image in "
            f'dataset.json: "slides": {{{entries}, ...}}'
        )

    def _rare_classes(self) -> list[str]:
        """List classes that only one of several splits has, or that training lacks: they may be misspelt."""
        rare = []
        for label, name in enumerate(self.classes):
            having = [
                split for split, tiles in self.splits.items() if any(label in tile.labels_N for tile in tiles)
            ]
            untrained = "train" in self.splits and "train" not in having
            if len(self.splits) > 1 and (untrained or len(having) == 1):
                rare.append(f"{name!r} (in {' and '.join(having)})")
        return rare


def image_sizes(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """Return width and height of every image; each is decoded to find damaged ones before training starts.

    Raises:
        UserError: as `image_size`.
    """
    with ThreadPoolExecutor() as threads:
        return list(threads.map(image_size, paths))


def image_size(path: Path) -> tuple[int, int]:
    """Decode an image; returns width and height in px.

    Raises:
        UserError: the file is not an image, is damaged or too large, or holds other than 8-bit pixels.
    """
    return open_rgb(path).size
