"""Readers of annotated data: one file a layout, one convention behind them all."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from finetune.datasets import consep, points
from finetune.datasets.annotated_data import AnnotatedData
from finetune.datasets.description import Description, class_values, describe
from shared.command_line import UserError

LAYOUTS = (
    "{train,val,test}/{images,points} or a flat {images,points} with one x,y,class CSV an image "
    "and a dataset.json, or CoNSeP's train_N/test_N tiles"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where annotated data lies; the rest only where the data does not say it."""

    data: Path = Path("data")
    """Folder of images and point annotations."""
    slide_mpp: float | None = None
    """Resolution of the images, um/px."""
    classes: tuple[str, ...] = ()
    """Classes in order, each NAME=VALUE with its value in the files, or a NAME that is its own value."""
    origin: str | None = None
    """What (0, 0) means in the files: corner (of the first pixel) or pixel_index (its centre)."""


def load_data(source: Source) -> AnnotatedData:
    """Recognise the layout of `source.data` and read its annotations.

    Raises:
        UserError: no data there, or a file in it is wrong; the sentence says which and why.
    """
    folder = source.data
    if not folder.is_dir():
        raise UserError(f"there is no annotated data at {folder}; give its folder with --data. Read are {LAYOUTS}")
    if consep.is_consep(folder):
        return points.load_points(folder, _overridden(consep.description(), source))
    if points.is_points(folder):
        return points.load_points(folder, _overridden(describe(folder), source))
    raise UserError(f"{folder} has none of the known layouts: {LAYOUTS}")


def _overridden(description: Description, source: Source) -> Description:
    """What the command line says goes before what the data says."""
    pairs = [entry.partition("=") for entry in source.classes]
    return dataclasses.replace(
        description,
        mpp=description.mpp if source.slide_mpp is None else source.slide_mpp,
        classes=class_values([(name, value or name) for name, _, value in pairs], "--classes")
        or description.classes,
        origin=source.origin or description.origin,
    )
