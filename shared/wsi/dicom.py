"""Which DICOM files belong together: the header's series, read without a library."""

import struct
from pathlib import Path
from typing import BinaryIO

SERIES = (0x0020, 0x000E)
ITEM, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
DELIMITERS = 0xFFFE  # group of what parts sequences; it has no type
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
OPEN = 0xFFFFFFFF  # length of what ends with a delimiter
LONGEST_UID = 256  # bytes; 64 by the standard, a few more in real files, and gigabytes where it is damaged
MOST_ELEMENTS = 10_000  # before the series; real files have fewer than a hundred


def series_of(path: Path) -> str | None:
    """The SeriesInstanceUID of a DICOM file: equal in all files of one slide. None where it cannot be read.

    Elements have to state their types ("explicit VR, little endian"), as in all files that OpenSlide reads.
    """
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return None
        with path.open("rb") as file:
            file.seek(128)
            return _series(file) if file.read(4) == b"DICM" else None
    except (OSError, struct.error, OverflowError):
        return None


def _series(file: BinaryIO) -> str | None:
    """Go from element to element up to the series, which the standard's order puts before all px."""
    depth = 0  # sequences of open length that have not ended; elements in them belong to something else
    for _ in range(MOST_ELEMENTS):
        tag, length = _element(file)
        if tag == SEQUENCE_END:
            depth -= 1
        elif length == OPEN:
            depth += tag != ITEM
        elif tag == SERIES and not depth:
            return None if length > LONGEST_UID else file.read(length).rstrip(b"\0 ").decode("ascii", "replace")
        elif tag > SERIES and not depth:
            return None
        else:
            file.seek(length, 1)
    return None


def _element(file: BinaryIO) -> tuple[tuple[int, int], int]:
    """Tag and length of the next element; the file stands at its content then.

    Raises:
        struct.error: the file ends.
    """
    group, number = struct.unpack("<HH", file.read(4))
    if group == DELIMITERS:
        return (group, number), struct.unpack("<I", file.read(4))[0]
    kind, length = struct.unpack("<2sH", file.read(4))
    return (group, number), struct.unpack("<I", file.read(4))[0] if kind in LONG else length
