"""Write cells as GeoJSON for QuPath, CSV and Parquet, as a stream; a file is whole or absent."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from finetune.predict.config import import_parquet
from shared.errors import UserError
from shared.files import atomic_path
from shared.reporting.pictures import COLOURS

COLUMNS = ("x", "y", "x_um", "y_um", "class", "probability", "tile")
PROBABILITY = "Probability"


class Rows(NamedTuple):
    """Cells as they are written."""

    points_N2: np.ndarray
    """Px of level 0 from QuPath's origin."""
    mpp: float
    """um/px of level 0."""
    labels_N: np.ndarray
    probability_N: np.ndarray
    tile_N: np.ndarray
    probabilities_NC: np.ndarray | None = None
    """Probability of every class, if they are to be written."""


Chunks = Callable[[], Iterable[Rows]]


def write_geojson(path: Path, chunks: Chunks, classes: Sequence[str]) -> None:
    """Write a feature collection of detections, each a point on its own line; .gz and .zip are compressed.

    In QuPath's form: `properties` hold objectType, classification (name and colour) and measurements; points are
    px of level 0, from the outer corner of the first.
    """
    with _text(path) as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        heads = [_feature(name, label) for label, name in enumerate(classes)]
        for rows in chunks():
            for (x, y), label, probability in zip(
                rows.points_N2.tolist(), rows.labels_N.tolist(), rows.probability_N.tolist(), strict=True
            ):
                before, between, after = heads[label]
                file.write(f"{separator}{before}{x:.2f}, {y:.2f}{between}{probability:.4f}{after}")
                separator = ",\n"
        file.write("\n]}\n")


def write_csv(path: Path, chunks: Chunks, classes: Sequence[str], probabilities: bool = False) -> None:
    """Write a line a cell: px of level 0, the same in um, class, its probability, number of the tile.

    `probabilities`: and the probability of every class.
    """
    with _text(path) as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(_probability_columns(classes) if probabilities else ())])
        for rows in chunks():
            writer.writerows(_lines(rows, classes))


def write_parquet(path: Path, chunks: Chunks, classes: Sequence[str], probabilities: bool = False) -> None:
    """Write the columns of the CSV.

    Raises:
        UserError: pyarrow is not installed.
    """
    pyarrow, parquet = import_parquet()
    names = np.array(classes)
    schema = pyarrow.schema(
        [(name, pyarrow.float64()) for name in COLUMNS[:4]]
        + [("class", pyarrow.string()), ("probability", pyarrow.float32()), ("tile", pyarrow.int32())]
        + [(name, pyarrow.float32()) for name in (_probability_columns(classes) if probabilities else ())]
    )
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for rows in chunks():
            x_N, y_N = rows.points_N2.T
            columns = [x_N, y_N, x_N * rows.mpp, y_N * rows.mpp, names[rows.labels_N]]
            columns += [rows.probability_N, rows.tile_N]
            columns += [] if rows.probabilities_NC is None else list(rows.probabilities_NC.T)
            writer.write_table(pyarrow.table(columns, schema=schema))


def colour_of(label: int) -> tuple[int, int, int]:
    """RGB of a class in all pictures and in QuPath."""
    code = COLOURS[label % len(COLOURS)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def _probability_columns(classes: Sequence[str]) -> list[str]:
    return [f"probability of {name}" for name in classes]


def _feature(name: str, label: int) -> tuple[str, str, str]:
    """JSON of a feature of a class, cut at the places of coordinates and probability."""
    classification = json.dumps({"name": name, "color": colour_of(label)}, ensure_ascii=False)
    before = '{"type": "Feature", "geometry": {"type": "Point", "coordinates": ['
    between = (
        f']}}, "properties": {{"objectType": "detection", "classification": {classification}, "measurements": '
    )
    return before, f'{between}{{"{PROBABILITY}": ', "}}}"


def _lines(rows: Rows, classes: Sequence[str]) -> Iterator[tuple[str | int, ...]]:
    columns = (rows.points_N2.tolist(), rows.labels_N.tolist(), rows.probability_N.tolist(), rows.tile_N.tolist())
    others = [[]] * len(rows.labels_N) if rows.probabilities_NC is None else rows.probabilities_NC.tolist()
    for (x, y), label, probability, tile, all_of_cell in zip(*columns, others, strict=True):
        um = (f"{x * rows.mpp:.3f}", f"{y * rows.mpp:.3f}")
        numbers = (f"{each:.4f}" for each in all_of_cell)
        yield f"{x:.2f}", f"{y:.2f}", *um, classes[label], f"{probability:.4f}", tile, *numbers


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """Open a text file that will be whole or absent."""
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as raw, ExitStack() as stack:
            stream: IO[bytes] = raw
            if path.suffix == ".gz":
                stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
            elif path.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED))
                entry = zipfile.ZipInfo(f"{path.stem}.geojson")
                entry.compress_type = zipfile.ZIP_DEFLATED
                stream = stack.enter_context(archive.open(entry, "w", force_zip64=True))
            yield stack.enter_context(io.TextIOWrapper(stream, "utf-8", newline=""))
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); make room, and the same command goes on"
        ) from error
