"""Summary of annotated data, as in the paper's Table 2."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from finetune.datasets import DataOptions, Overrides, load_data
from finetune.datasets.dataset import AnnotatedData, Tile
from shared.reporting.tables import table


@dataclass(frozen=True, kw_only=True)
class Summary(Overrides):
    """Read a folder of annotated data as `finetune` would, and print images, slides and cells per split."""

    data: tyro.conf.Positional[Path]
    """Folder of images and point annotations."""


def summarise(config: Summary) -> None:
    """Print the summary."""
    stated = {field.name: getattr(config, field.name) for field in dataclasses.fields(Overrides)}
    print(summary_text(load_data(DataOptions(data=config.data, **stated))))


def summary_text(data: AnnotatedData) -> str:
    """Format the line of Table 2, and a table of images, slides, patients and cells per split and class."""
    everything = [tile for tiles in data.splits.values() for tile in tiles]
    patients = any(tile.patient for tile in everything)
    columns = ["images", "slides", *(["patients"] if patients else []), "cells", *data.classes]
    lines = [f"{data.folder}: {_sizes(everything)} px at {data.mpp:.4g} um/px, {_table_2(data)}"]
    rows = [[name, *_counts(tiles, data, patients)] for name, tiles in {**data.splits, "all": everything}.items()]
    return "\n".join([*lines, "", table(["split", *columns], rows), *data.notes()])


def _table_2(data: AnnotatedData) -> str:
    """Format images and cells per split as the paper does."""
    names = "/".join(data.splits)
    images = "/".join(str(len(tiles)) for tiles in data.splits.values())
    cells = " / ".join(f"{sum(len(tile.labels_N) for tile in tiles):,}" for tiles in data.splits.values())
    return f"{len(data.classes)} classes; {names}: {images} images, {cells} cells"


def _sizes(tiles: Sequence[Tile]) -> str:
    """Format the size of the images, or its range."""
    (size, count), *_ = Counter(tile.size for tile in tiles).most_common()
    if count == len(tiles):
        return f"{size[0]}x{size[1]}"
    low, high = (f"{w}x{h}" for w, h in (np.min([t.size for t in tiles], 0), np.max([t.size for t in tiles], 0)))
    return f"{low} to {high}"


def _counts(tiles: Sequence[Tile], data: AnnotatedData, patients: bool) -> list[str]:
    labels_N = np.concatenate([tile.labels_N for tile in tiles])
    per_class = np.bincount(labels_N, minlength=len(data.classes)).tolist()
    people = [len({tile.patient for tile in tiles} - {""})] if patients else []
    counts = [len(tiles), len({tile.slide for tile in tiles}), *people, len(labels_N), *per_class]
    return [f"{count:,}" for count in counts]
