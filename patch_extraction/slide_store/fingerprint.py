"""Telling whether two slides are the same file, without reading the whole of large ones."""

import filecmp
import hashlib
from pathlib import Path

# Formats of which the file found is only one of many, so that equal files do not mean equal slides.
MANY_FILES = (".mrxs", ".vms", ".vmu", ".dcm")
# Large files are compared by so many pieces of so many bytes, spread over them.
PIECES, PIECE = 64, 1 << 16


def is_sampled(size: int) -> bool:
    """Return whether the fingerprint of a file of `size` bytes covers only parts of it."""
    return size > PIECES * PIECE


def last_change(path: Path) -> int:
    """Return when a slide was last written, in ns; of a MIRAX slide with the file that states its um/px.

    Raises:
        OSError: it is inaccessible.
    """
    header = path.with_suffix("") / "Slidedat.ini"
    files = [path, header] if path.suffix.lower() == ".mrxs" and header.is_file() else [path]
    return max(file.stat().st_mtime_ns for file in files)


def is_copy(path: Path, original: Path) -> bool:
    """Return whether two files are one or hold the same bytes; False if one of them cannot be read."""
    try:
        return path.samefile(original) or filecmp.cmp(path, original, shallow=False)
    except OSError:
        return False


def fingerprint(path: Path) -> str:
    """A hash of the whole of a small file, or of pieces all over a large one; empty for formats of many files.

    Raises:
        OSError: it cannot be read.
    """
    if path.suffix.lower() in MANY_FILES:
        return ""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek(number * (size - PIECE) // (PIECES - 1) if is_sampled(size) else number * PIECE)
            digest.update(file.read(PIECE))
    return digest.hexdigest()
