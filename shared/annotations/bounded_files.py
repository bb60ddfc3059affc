"""Bounded reading of files from others: JSON, packed JSON and CSV whose content may be hostile."""

import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from shared.errors import UserError

MOST_BYTES = 2**32
# Packed files may expand 200-fold (GeoJSON does 10- to 30-fold, bombs 1,000-fold); up to 64 MiB anything may.
MOST_EXPANSION, UNSUSPICIOUS_BYTES = 200, 2**26
CHUNK = 2**20
LONGEST_LINE = 2**20  # characters of a line of CSV; a field has at most 131,072, the csv module's own limit
UNREADABLE = (EOFError, ValueError, RecursionError, RuntimeError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)


class Binary(Protocol):
    """Readable file."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes."""


def read_json(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse a JSON file; a name that ends in .gz or .zip is unpacked.

    Args:
        path: The file.
        hook: Replaces each object as soon as it is parsed.

    Raises:
        UserError: the file is not JSON, nested too deeply, damaged, or far larger than any annotation.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(_unpacked(path).decode("utf-8-sig"), object_hook=hook)
    except UNREADABLE as error:
        raise UserError(f"{path} is not JSON ({error or type(error).__name__}); export it again") from error


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file with a header, each with its line number.

    Raises:
        UserError: the file is not a CSV text, or lacks one of the columns.
    """
    rows = read_rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not set(columns) <= set(header):
        found, text = ", ".join(header) or "empty", "".join(header)
        separated = " and separate them by commas" if ";" in text or "\t" in text else ""
        raise UserError(
            f"{path} has no header with the columns {','.join(columns)} (its first line: {found}); "
            f"name them so in the first line{separated}"
        )
    for line, row in rows:
        if row:
            yield line, dict(zip(header, [*row, *[""] * (len(header) - len(row))], strict=False))


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV file as lists of fields, each with its line number; empty lines are empty lists.

    Raises:
        UserError: the file is not a CSV text, or has a line or field far longer than any table's.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(_lines(file))
            for row in reader:
                yield reader.line_num, row
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV text file ({error})") from error


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
        yield line


def _unpacked(path: Path) -> bytes:
    packed = path.stat().st_size
    match path.suffix.lower():
        case ".gz":
            with gzip.open(path, "rb") as file:
                return _bounded(file, packed)
        case ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.lower().endswith((".geojson", ".json"))]
                if len(names) != 1:
                    raise ValueError(f"it holds {len(names)} files of JSON, not one")
                with archive.open(names[0]) as member:
                    return _bounded(member, packed)
    with path.open("rb") as plain:
        return _bounded(plain, MOST_BYTES)


def _bounded(file: Binary, packed: int) -> bytes:
    """Read a file up to what `packed` bytes may reasonably expand to."""
    most = min(MOST_BYTES, max(UNSUSPICIOUS_BYTES, MOST_EXPANSION * packed))
    chunks, size = [], 0
    while chunk := file.read(CHUNK):
        size += len(chunk)
        if size > most:
            raise ValueError(f"it unpacks to more than {most >> 20:,} MiB")
        chunks.append(chunk)
    return b"".join(chunks)
