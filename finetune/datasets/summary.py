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


@dataclass(frozen=True, kw_only=True)
class Summary(Overrides):
    """Read a folder of annotated data as `finetune` would, and print images, slides and cells per split."""

    data: tyro.conf.Positional[Path]
    """Folder of images and point annotations."""


def summarise(config: Summary) -> None:
    """Print the summary."""
    said = {field.name: getattr(config, field.name) for field in dataclasses.fields(Overrides)}
    print(table(load_data(DataOptions(data=config.data, **said))))


def table(data: AnnotatedData) -> str:
    """Format the line of Table 2, and a table of images, slides and cells per split and class."""
    columns = ["images", "slides", "cells", *data.classes]
    widths = [max(len(column), 8) + 2 for column in columns]
    everything = [tile for tiles in data.splits.values() for tile in tiles]
    lines = [f"{data.folder}: {_sizes(everything)} px at {data.mpp:.4g} um/px, {_table_2(data)}"]
    lines += ["", f"{'split':<6}" + _row(columns, widths)]
    lines += [f"{name:<6}{_row(_counts(tiles, data), widths)}" for name, tiles in data.splits.items()]
    return "\n".join([*lines, f"{'all':<6}{_row(_counts(everything, data), widths)}", *data.notes()])


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


def _counts(tiles: Sequence[Tile], data: AnnotatedData) -> list[str]:
    labels_N = np.concatenate([tile.labels_N for tile in tiles])
    per_class = np.bincount(labels_N, minlength=len(data.classes)).tolist()
    counts = [len(tiles), len({tile.slide for tile in tiles}), len(labels_N), *per_class]
    return [f"{count:,}" for count in counts]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
