"""Writer of pyramidal TIFFs of JPEG tiles, like those of slide scanners.

tifffile writes JPEG tiles only with a 30 MB package of codecs, even if they are encoded already. Classic
little-endian TIFF (TIFF 6.0), below 4 GB.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SHORT, LONG, RATIONAL, ASCII = 3, 4, 5, 2
FORMATS = {SHORT: "H", LONG: "I", RATIONAL: "I"}
JPEG, YCBCR, CENTIMETRE = 7, 6, 3
Entry = tuple[int, int, int, bytes]  # tag, type, count, value


@dataclass(frozen=True)
class TiffLevel:
    """One resolution of a pyramid: JPEG streams of `tile` x `tile` px with 4:2:0 chroma, row by row."""

    width: int
    height: int
    tile: int
    streams: Iterable[bytes]


def write_pyramid(
    path: Path, levels: Iterable[TiffLevel], description: str = "", pixels_per_centimetre: float | None = None
) -> None:
    """Write the levels, finest first; a resolution (of level 0) is stated if given."""
    with path.open("wb") as file:
        file.write(b"II*\0" + bytes(4))
        link = 4  # position of the offset of the next directory
        for index, level in enumerate(levels):
            offsets, sizes = zip(*_append(file, level.streams), strict=True)
            entries = _entries(level, offsets, sizes, description, reduced=index > 0)
            if pixels_per_centimetre is not None and index == 0:
                entries += _resolution(pixels_per_centimetre)
            link = _write_directory(file, sorted(entries), link)


def _append(file: BinaryIO, streams: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Write the streams one after the other; yield offset and size of each."""
    for stream in streams:
        yield file.tell(), len(stream)
        file.write(stream)


def _entries(
    level: TiffLevel, offsets: tuple[int, ...], sizes: tuple[int, ...], description: str, reduced: bool
) -> list[Entry]:
    text = description.encode("ascii") + b"\0"
    entries = [
        _entry(254, LONG, int(reduced)),  # NewSubfileType: 1 is a reduced copy of level 0
        _entry(256, LONG, level.width),
        _entry(257, LONG, level.height),
        _entry(258, SHORT, 8, 8, 8),  # BitsPerSample
        _entry(259, SHORT, JPEG),
        _entry(262, SHORT, YCBCR),
        _entry(277, SHORT, 3),  # SamplesPerPixel
        _entry(322, LONG, level.tile),
        _entry(323, LONG, level.tile),
        _entry(324, LONG, *offsets),
        _entry(325, LONG, *sizes),
        _entry(530, SHORT, 2, 2),  # YCbCrSubSampling
    ]
    return [*entries, (270, ASCII, len(text), text)] if description else entries


def _resolution(pixels_per_centimetre: float) -> list[Entry]:
    ratio = (round(pixels_per_centimetre * 1000), 1000)
    return [_entry(282, RATIONAL, *ratio), _entry(283, RATIONAL, *ratio), _entry(296, SHORT, CENTIMETRE)]


def _entry(tag: int, kind: int, *values: int) -> Entry:
    count = len(values) // 2 if kind == RATIONAL else len(values)
    return tag, kind, count, struct.pack(f"<{len(values)}{FORMATS[kind]}", *values)


def _write_directory(file: BinaryIO, entries: list[Entry], link: int) -> int:
    """Append a directory and write its offset at `link`; return the position of the next one's offset."""
    fields = []
    for tag, kind, count, value in entries:
        if len(value) > 4:  # too long for the entry itself: stored before the directory
            file.write(bytes(file.tell() % 2))
            value, stored = struct.pack("<I", file.tell()), value
            file.write(stored)
        fields.append(struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0"))
    file.write(bytes(file.tell() % 2))
    start = file.tell()
    file.write(struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4))
    end = file.tell()
    file.seek(link)
    file.write(struct.pack("<I", start))
    file.seek(end)
    return end - 4
