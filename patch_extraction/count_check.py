"""`python -m patch_extraction.count_check DIR...`: accuracy of a cell counter on annotated fields.

Fields are cut into squares of the size of a patch; squares overlap if a field is no multiple of that, and cells in
two of them count twice. Reported are the mean error of the counts (in cells), the F1 of single cells, precision
and recall of "at least --min-cells", and the fraction of squares with that many cells."""

import csv
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from scipy.optimize import linear_sum_assignment

from patch_extraction.counters.base import CellCounter, choose_counter, require_working
from shared.annotations.bounded_files import read_table
from shared.cli import Range, parse, run, validate
from shared.errors import UserError
from shared.files import atomic_path
from shared.reporting.tables import table
from shared.weights.shipped import NUCLEI
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.rgb import open_rgb

MATCH_UM = 4.0  # maximum distance of a match, about the radius of a nucleus
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class CountCheckConfig:
    """Compare a cell counter with annotated fields."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """DIR or DIR=MPP: a folder with `images/` and `points/NAME.csv` (columns x, y), and um/px of its images unless
    a `dataset.json` states it."""
    counter: str = NUCLEI
    """Cell counter, as for a harvest: `nuclei`, `haematoxylin`, `detector:FILE` or MODULE:FUNCTION."""
    detector: Path | None = None
    """Same as `--counter detector:FILE`."""
    leave_out_ink: bool = False
    """With `--counter haematoxylin`: leave out spots with the colours of ink and soot."""
    patch_um: Annotated[float, Range(10, 10_000)] = 128.0
    """Side of the squares in um (512 px of 0.25 um)."""
    min_cells: Annotated[int, Range(0, 10**6)] = 30
    """Minimum number of cells in a square."""
    pixel_index: bool = False
    """Coordinates are pixel indices: 0 is the centre of the first pixel, not its corner."""
    out: Path | None = None
    """Also write the table as CSV; rows of other counters in an existing file are kept."""


@dataclass(frozen=True)
class Quality:
    """Accuracy of a counter on one set: a row of the table."""

    set: str
    counter: str
    mpp: float
    squares: int
    cells: int
    f1: float  # of single cells, within 4 um
    count_error: float  # mean of |found - true| per square
    precision: float  # of "at least --min-cells"
    recall: float
    enough: float  # fraction of squares with enough annotated cells
    ms: float  # per square


def main() -> None:
    """Measure a counter, print the table and write it if requested."""
    config = parse(CountCheckConfig, "python -m patch_extraction.count_check", __doc__)
    validate(config)
    places = [_place(word) for word in config.folders]
    if not places:
        raise UserError("name at least one folder of annotated fields")
    finest = min(mpp for _, mpp in places)
    counter = choose_counter(config.counter, config.detector, config.leave_out_ink)
    require_working(counter, finest, round(config.patch_um / finest))
    rows = []
    for folder, mpp in places:
        squares = list(annotated_squares(folder, mpp, config.patch_um, 0.5 if config.pixel_index else 0.0))
        rows.append(measure(_name(folder), squares, mpp, counter, config.min_cells))
    print(table([field.name for field in fields(Quality)], [_values(row) for row in rows]))
    if config.out is not None:
        _merge(config.out, rows)
        print(f"written to {config.out}")


def measure(
    name: str, squares: Sequence[tuple[np.ndarray, np.ndarray]], mpp: float, counter: CellCounter, min_cells: int
) -> Quality:
    """Compare a counter with squares of (image, annotated points)."""
    found, hits = [], 0
    start = time.perf_counter()
    for image_HW3, _ in squares:
        found.append(counter.find(image_HW3, mpp))
    seconds = time.perf_counter() - start
    for found_N2, (_, true_M2) in zip(found, squares, strict=True):
        hits += _matches(found_N2, true_M2, MATCH_UM / mpp)
    counts = np.array([len(points) for points in found])
    true = np.array([len(points) for _, points in squares])
    accepted, right = counts >= min_cells, true >= min_cells
    return Quality(
        set=name,
        counter=counter.name,
        mpp=mpp,
        squares=len(squares),
        cells=int(true.sum()),
        f1=_ratio(2 * hits, counts.sum() + true.sum()),
        count_error=round(float(np.abs(counts - true).mean()), 2),
        precision=_ratio((accepted & right).sum(), accepted.sum()),
        recall=_ratio((accepted & right).sum(), right.sum()),
        enough=_ratio(right.sum(), len(right)),
        ms=round(1e3 * seconds / len(squares), 2),
    )


def annotated_squares(
    folder: Path, mpp: float, patch_um: float, offset: float = 0.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield squares of `patch_um` um that cover every annotated image, with the points (px, corner origin) inside.

    Raises:
        UserError: there are no images, or one has no points or cannot be read.
    """
    paths = sorted(path for path in (folder / "images").glob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise UserError(f"{folder / 'images'} holds no pictures; give a folder with images/ and points/")
    side = round(patch_um / mpp)
    for path in paths:
        image = np.asarray(open_rgb(path))
        points_N2 = _points(folder / "points" / f"{path.stem}.csv") + offset
        starts = [np.linspace(0, max(0, n - side), max(1, round(n / side))).astype(int) for n in image.shape[:2]]
        for top in starts[0]:
            for left in starts[1]:
                inside = ((points_N2 >= (left, top)) & (points_N2 < (left + side, top + side))).all(axis=1)
                yield image[top : top + side, left : left + side], points_N2[inside] - (left, top)


def _points(path: Path) -> np.ndarray:
    try:
        rows = [(float(row["x"]), float(row["y"])) for _, row in read_table(path, ("x", "y"))]
    except OSError as error:
        raise UserError(f"cannot read the annotations {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no table of cells; it needs columns x and y with numbers") from error
    return np.array(rows).reshape(-1, 2)


def _place(word: str) -> tuple[Path, float]:
    """Return a folder and the um/px of its images: `DIR=MPP`, or from the `dataset.json` there or one folder
    up."""
    name, _, number = word.rpartition("=")
    folder = Path(name or word)
    mpp: Any = number if name else next(filter(None, map(_described_mpp, (folder, folder.parent))), None)
    try:
        value = float(mpp)
    except (TypeError, ValueError):
        value = 0.0
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path")
    if not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
        least, most = MPP_RANGE
        known = "not known" if mpp is None else f"given as {mpp}"
        raise UserError(f"the um/px of {folder} are {known}; give a number from {least} to {most} as {folder}=0.5")
    return folder, value


def _described_mpp(folder: Path) -> Any:
    try:
        return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["mpp"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(folder: Path) -> str:
    """Name a set by its last two folders, as in `CoNSeP/test`."""
    return "/".join(folder.resolve().parts[-2:])


def _matches(found_N2: np.ndarray, true_M2: np.ndarray, radius: float) -> int:
    """Return the maximum number of one-to-one pairs of found and annotated cells within the radius."""
    if not len(found_N2) or not len(true_M2):
        return 0
    distance_NM = np.hypot(*(found_N2[:, None] - true_M2[None]).transpose(2, 0, 1))
    rows, columns = linear_sum_assignment(np.where(distance_NM <= radius, distance_NM, 1e6))
    return int((distance_NM[rows, columns] <= radius).sum())


def _ratio(part: float, whole: float) -> float:
    """Divide and round; NaN if `whole` is 0."""
    return round(float(part / whole), 4) if whole else float("nan")


def _values(row: Quality) -> list[Any]:
    return [getattr(row, field.name) for field in fields(row)]


def _merge(path: Path, rows: Sequence[Quality]) -> None:
    """Write rows into a CSV, replacing those of the same set and counter."""
    header = [field.name for field in fields(Quality)]
    lines: dict[tuple[str, str], list[Any]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            old = list(csv.reader(file))
        if not old or old[0] != header:
            raise UserError(f"{path} is another kind of table; give another --out")
        lines = {(line[0], line[1]): line for line in old[1:]}
    lines |= {(row.set, row.counter): _values(row) for row in rows}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(lines[key] for key in sorted(lines))])


if __name__ == "__main__":
    run(main)
