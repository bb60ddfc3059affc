"""Identity of slide files, without reading the whole of large ones."""

import filecmp
import hashlib
from pathlib import Path

# Formats of several files: equality of the listed one does not make slides equal.
MULTI_FILE = (".mrxs", ".vms", ".vmu", ".dcm")
# Number and bytes of the pieces by which large files are compared.
PIECES, PIECE = 64, 1 << 16


def fingerprint(path: Path) -> str:
    """Hash a small file, or pieces spread over a large one; empty for formats of several files.

    Raises:
        OSError: the file cannot be read.
    """
    if path.suffix.lower() in MULTI_FILE:
        return ""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek(number * (size - PIECE) // (PIECES - 1) if is_sampled(size) else number * PIECE)
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def is_sampled(size: int) -> bool:
    """Return whether the fingerprint of a file of `size` bytes covers only parts of it."""
    return size > PIECES * PIECE


def is_copy(path: Path, original: Path) -> bool:
    """Return whether two paths lead to one file or to equal bytes; False if one of them cannot be read."""
    try:
        return path.samefile(original) or filecmp.cmp(path, original, shallow=False)
    except OSError:
        return False


def last_change(path: Path) -> int:
    """Return the modification time of a slide in ns; of MIRAX, also of the file that states its um/px.

    Raises:
        OSError: the file is inaccessible.
    """
    header = path.with_suffix("") / "Slidedat.ini"
    files = [path, header] if path.suffix.lower() == ".mrxs" and header.is_file() else [path]
    return max(file.stat().st_mtime_ns for file in files)
