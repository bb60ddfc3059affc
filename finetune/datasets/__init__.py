"""Annotated data: readers of several layouts, which return tiles and cells in one convention."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from finetune.datasets.dataset import AnnotatedData
from finetune.datasets.description import NAME, Description, class_values, describe
from finetune.datasets.layouts import bcdata, consep, ocelot, points
from shared.cli import Range, validate
from shared.errors import UserError
from shared.wsi.resolution import MPP_RANGE


class Reader(Protocol):
    """Interface of a module that reads one layout."""

    LAYOUT: str
    """Its folders, as shown in messages."""
    DEFAULTS: Description
    """Facts that a published data set does not state itself."""

    def matches(self, folder: Path) -> bool:
        """Test if the folder has the layout."""

    def load(self, folder: Path, description: Description) -> AnnotatedData:
        """Read the data; raises UserError with the file, the row and the reason."""


# By the value of `format` in dataset.json; the first that matches a folder reads it.
READERS: dict[str, Reader] = {"consep": consep, "bcdata": bcdata, "ocelot": ocelot, "points": points}


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Facts that override those stated in the data."""

    slide_mpp: Annotated[float | None, Range(*MPP_RANGE)] = None
    """Resolution of the images, um/px."""
    classes: tuple[str, ...] = ()
    """Classes in order, each NAME=VALUE with its value in the files, or a NAME that is its own value."""
    origin: str | None = None
    """Meaning of (0, 0) in the files: corner (outer corner of the first pixel) or pixel_index (its centre)."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Overrides):
    """Folder of annotated data; the other options are for facts that it does not state."""

    data: Path = Path("data")
    """Folder of images and point annotations."""
    radius_um: Annotated[float | None, Range(0.1, 1000)] = None
    """Matching distance of the scores, um; default: the data set's own, else 3 (the paper's)."""


def load_data(source: DataOptions) -> AnnotatedData:
    """Recognise the layout of `source.data` and read its annotations.

    Raises:
        UserError: the folder has no known layout, or a file in it is malformed.
    """
    validate(source)
    folder = source.data
    layouts = "; ".join(reader.LAYOUT for reader in READERS.values())
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; give the folder of annotated data with --data ({layouts})")
    for name, reader in READERS.items():
        if reader.matches(folder):
            data = reader.load(folder, _described(folder, name, source))
            radius_um = data.radius_um if source.radius_um is None else source.radius_um
            return dataclasses.replace(data, radius_um=radius_um)
    raise UserError(f"{folder} has none of the supported layouts: {layouts}")


def _described(folder: Path, name: str, source: DataOptions) -> Description:
    """Combine the command line, dataset.json, and the facts known of a published data set, in this order."""
    described = describe(folder, READERS[name].DEFAULTS)
    if described.format not in (None, name):
        raise UserError(f"{folder / NAME} states format {described.format!r}, but its folders are {name!r}'s")
    pairs = [entry.partition("=") for entry in source.classes]
    return dataclasses.replace(
        described,
        mpp=described.mpp if source.slide_mpp is None else source.slide_mpp,
        classes=class_values([(key, value or key) for key, _, value in pairs], "--classes") or described.classes,
        origin=source.origin or described.origin,
    )
