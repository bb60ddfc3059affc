"""`python -m tests.benchmarks.seams DETECTOR SLIDE`: how far a region's cells depend on the tiles, as seams.csv.

A region is looked at in one piece and in tiles; cells of the same class within 1 px agree. `doubled` are pairs of
cells of different tiles closer than 1.5 um of which the one piece has only one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.spatial import KDTree

from finetune.predict.in_memory import cells_of
from finetune.predict.search.deduplicate import SAME_CELL_UM
from finetune.predict.search.tiling import Tiling, tiling_of
from shared.model.detector_file import LoadedDetector
from shared.wsi.image_source import Picture, open_source
from tests.benchmarks.measuring import timed, write


@dataclass(frozen=True)
class Agreement:
    """Of the cells found in tiles with those found in one piece."""

    cells: int
    agree: float
    """Share of all cells, of either, that the other has within 1 px and in the same class."""
    doubled: int
    most_moved_px: float


@dataclass(frozen=True)
class Options:
    """Compare tilings of a region."""

    detector: tyro.conf.Positional[Path]
    slide: tyro.conf.Positional[Path]
    corner: tuple[int, int] = (1000, 1000)
    """px of level 0."""
    side: int = 4096
    """Of the region, px of the detector's um/px."""
    tiles: tuple[str, ...] = ("1024:128", "512:128", "1024:64", "512:64", "512:0")
    """Tilings, each TILE:MARGIN."""
    slide_mpp: float | None = None
    piece: bool = True
    """Compare with one piece; off: with the first of the tilings, for networks whose tile is fixed."""
    out: Path = Path(__file__).with_suffix(".csv")


def agreement(whole: np.ndarray, tiled: np.ndarray, mpp: float = 0.5) -> Agreement:
    """How far two sets of cells (`windows.CELL`) are the same."""
    first, second = (np.stack([cells["x"], cells["y"]], axis=1) for cells in (whole, tiled))
    pairs = KDTree(first).query_ball_tree(KDTree(second), 1.0)
    mates = {
        one: [two for two in found if tiled["label"][two] == whole["label"][one]]
        for one, found in enumerate(pairs)
    }
    matched = [one for one, found in mates.items() if found]
    back = {two for found in mates.values() for two in found}
    moved = [min(float(np.hypot(*(first[one] - second[two]))) for two in mates[one]) for one in matched]
    close = KDTree(second).query_pairs(SAME_CELL_UM / mpp)
    across = [(one, two) for one, two in close if tiled["tile"][one] != tiled["tile"][two]]
    return Agreement(
        len(tiled),
        (len(matched) + len(back)) / max(len(whole) + len(tiled), 1),
        sum(
            len(KDTree(first).query_ball_point(second[[one, two]].mean(axis=0), SAME_CELL_UM / mpp)) < 2
            for one, two in across
        ),
        max(moved, default=0.0),
    )


def _tiling(detector: LoadedDetector, side: int, tile: int, margin: int) -> Tiling:
    return tiling_of((side, side), detector.network.config, detector.tile, None if detector.tile else tile, margin)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    detector, slide = LoadedDetector.load(options.detector), open_source(options.slide, options.slide_mpp)
    image = slide.read(*options.corner, options.side, options.side, detector.mpp)
    source = Picture(image, detector.mpp)
    tilings = [(int(tile), int(margin)) for tile, _, margin in (word.partition(":") for word in options.tiles)]
    rows: list[dict[str, Any]] = []
    whole = None
    for tile, margin in [(options.side, 128)] * options.piece + tilings:
        tiling = _tiling(detector, options.side, tile, margin)
        seconds, cells = timed(lambda tiling=tiling: cells_of(detector, source, tiling))
        whole = cells if whole is None else whole
        result = agreement(whole, cells, detector.mpp)
        rows.append(
            {
                "network": detector.network.config.arch,
                "slide": options.slide.name,
                "side_px": options.side,
                "tile_px": tiling.tile,
                "margin_px": 0 if tiling.whole else tiling.margin,
                "tiles": len(tiling),
                "seconds": f"{seconds:.0f}",
                "cells": result.cells,
                "agree_percent": f"{100 * result.agree:.3f}",
                "doubled": result.doubled,
                "most_moved_px": f"{result.most_moved_px:.3f}",
            }
        )
        print(rows[-1], flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
