"""Readers of annotated data: one file a layout, one convention behind them all."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune.datasets.dataset import AnnotatedData
from finetune.datasets.description import NAME, Description, class_values, describe
from finetune.datasets.layouts import bcdata, consep, ocelot, points
from shared.cli import check_range
from shared.errors import UserError
from shared.wsi.resolution import MPP_RANGE


class Reader(Protocol):
    """What a module of this package offers that reads one layout."""

    LAYOUT: str
    """Its folders, for people."""
    KNOWN: Description
    """What is known of the data set without looking into it."""

    def recognises(self, folder: Path) -> bool:
        """Whether the folder has the layout."""

    def load(self, folder: Path, description: Description) -> AnnotatedData:
        """Read it, failing with the file, the row and the reason."""


# By the name that `format` has in dataset.json; the first that recognises a folder reads it.
READERS: dict[str, Reader] = {"consep": consep, "bcdata": bcdata, "ocelot": ocelot, "points": points}


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the data does not say, or says wrongly."""

    slide_mpp: float | None = None
    """Resolution of the images, um/px."""
    classes: tuple[str, ...] = ()
    """Classes in order, each NAME=VALUE with its value in the files, or a NAME that is its own value."""
    origin: str | None = None
    """What (0, 0) means in the files: corner (of the first pixel) or pixel_index (its centre)."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Overrides):
    """Where annotated data lies; the rest only where the data does not say it."""

    data: Path = Path("data")
    """Folder of images and point annotations."""
    radius_um: float | None = None
    """Matching distance of the scores, um; default: the data set's own, else 3 (the paper's)."""


def load_data(source: DataOptions) -> AnnotatedData:
    """Recognise the layout of `source.data` and read its annotations.

    Raises:
        UserError: no data there, or a file in it is wrong; the sentence says which and why.
    """
    check_range("radius-um", source.radius_um, 0.1, 1000)
    check_range("slide-mpp", source.slide_mpp, *MPP_RANGE)
    folder = source.data
    layouts = "; ".join(reader.LAYOUT for reader in READERS.values())
    if not folder.is_dir():
        raise UserError(f"there is no annotated data at {folder}; give its folder with --data. Read are {layouts}")
    for name, reader in READERS.items():
        if reader.recognises(folder):
            data = reader.load(folder, _described(folder, name, source))
            radius_um = data.radius_um if source.radius_um is None else source.radius_um
            return dataclasses.replace(data, radius_um=radius_um)
    raise UserError(f"{folder} has none of the known layouts: {layouts}")


def _described(folder: Path, name: str, source: DataOptions) -> Description:
    """What the command line says goes before what the data says, and that before what is known of the data set."""
    described = describe(folder, READERS[name].KNOWN)
    if described.format not in (None, name):
        raise UserError(f"{folder / NAME} says format {described.format!r}, but the folders are those of {name!r}")
    pairs = [entry.partition("=") for entry in source.classes]
    return dataclasses.replace(
        described,
        mpp=described.mpp if source.slide_mpp is None else source.slide_mpp,
        classes=class_values([(key, value or key) for key, _, value in pairs], "--classes") or described.classes,
        origin=source.origin or described.origin,
    )
