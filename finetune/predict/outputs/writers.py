"""Cells as files for others: GeoJSON for QuPath, CSV, Parquet; each written as a stream, whole or not at all."""

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
    """Some cells as they are written."""

    points_N2: np.ndarray
    """px of level 0 as QuPath counts them."""
    mpp: float
    """um per such px."""
    labels_N: np.ndarray
    probability_N: np.ndarray
    tile_N: np.ndarray


Chunks = Callable[[], Iterable[Rows]]


def write_geojson(path: Path, chunks: Chunks, classes: Sequence[str]) -> None:
    """A feature collection of detections, one point and one line each; a path in .gz or .zip is compressed.

    As QuPath reads and writes it: `properties` hold objectType, classification (name and colour) and
    measurements; points are px of level 0, from the outer corner of the first.
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


def write_csv(path: Path, chunks: Chunks, classes: Sequence[str]) -> None:
    """A line a cell: px of level 0, the same in um, class, its probability, number of the tile."""
    with _text(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for rows in chunks():
            writer.writerows(_lines(rows, classes))


def write_parquet(path: Path, chunks: Chunks, classes: Sequence[str]) -> None:
    """The columns of the CSV.

    Raises:
        UserError: pyarrow is not installed.
    """
    pyarrow, parquet = import_parquet()
    names = np.array(classes)
    schema = pyarrow.schema(
        [(name, pyarrow.float64()) for name in COLUMNS[:4]]
        + [("class", pyarrow.string()), ("probability", pyarrow.float32()), ("tile", pyarrow.int32())]
    )
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for rows in chunks():
            x_N, y_N = rows.points_N2.T
            columns = [x_N, y_N, x_N * rows.mpp, y_N * rows.mpp, names[rows.labels_N]]
            columns += [rows.probability_N, rows.tile_N]
            writer.write_table(pyarrow.table(columns, schema=schema))


def colour_of(label: int) -> tuple[int, int, int]:
    """RGB of a class, the same in all pictures and in QuPath."""
    code = COLOURS[label % len(COLOURS)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def _feature(name: str, label: int) -> tuple[str, str, str]:
    """A feature of a class, cut where coordinates and probability belong."""
    classification = json.dumps({"name": name, "color": colour_of(label)}, ensure_ascii=False)
    before = '{"type": "Feature", "geometry": {"type": "Point", "coordinates": ['
    between = (
        f']}}, "properties": {{"objectType": "detection", "classification": {classification}, "measurements": '
    )
    return before, f'{between}{{"{PROBABILITY}": ', "}}}"


def _lines(rows: Rows, classes: Sequence[str]) -> Iterator[tuple[str | int, ...]]:
    columns = (rows.points_N2.tolist(), rows.labels_N.tolist(), rows.probability_N.tolist(), rows.tile_N.tolist())
    for (x, y), label, probability, tile in zip(*columns, strict=True):
        um = (f"{x * rows.mpp:.3f}", f"{y * rows.mpp:.3f}")
        yield f"{x:.2f}", f"{y:.2f}", *um, classes[label], f"{probability:.4f}", tile


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """A text file that is whole or absent."""
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
