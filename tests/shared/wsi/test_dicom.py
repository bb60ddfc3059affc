"""The series of DICOM files, whatever comes before it."""

import os
import signal
import struct

import pytest

from shared.wsi.dicom import series_of

OPEN = 0xFFFFFFFF


def element(group: int, number: int, kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """With its type, little endian; of even length as all are."""
    content += b"\0" * (len(content) % 2)
    length = len(content) if length is None else length
    size = struct.pack("<HI", 0, length) if kind in (b"SQ", b"UN", b"OB") else struct.pack("<H", length)
    return struct.pack("<HH2s", group, number, kind) + size + content


def item(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content) if length is None else length) + content


ITEM_END, SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
ANOTHER = element(0x0020, 0x000E, b"UI", b"9.9.9")  # the series of a file that is merely mentioned
SEQUENCES = {
    "none": b"",
    "measured": element(0x0008, 0x1115, b"SQ", item(ANOTHER)),
    "open": element(0x0008, 0x1115, b"SQ", item(ANOTHER + ITEM_END, OPEN) + SEQUENCE_END, OPEN),
    "of measured items": element(0x0008, 0x1115, b"SQ", item(ANOTHER) + item(ANOTHER) + SEQUENCE_END, OPEN),
    "nested": element(
        0x0008,
        0x1115,
        b"SQ",
        item(element(0x0008, 0x114A, b"SQ", item(ANOTHER + ITEM_END, OPEN) + SEQUENCE_END, OPEN) + ANOTHER, None)
        + item(element(0x0008, 0x114A, b"SQ", SEQUENCE_END, OPEN) + ANOTHER + ITEM_END, OPEN)
        + SEQUENCE_END,
        OPEN,
    ),
}


def dicom_file(series: str, sequence: bytes = SEQUENCES["nested"]) -> bytes:
    meta = element(0x0002, 0x0001, b"OB", b"\0\1") + element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.4.50")
    study = element(0x0010, 0x0020, b"LO", b"patient") + element(0x0020, 0x000D, b"UI", b"1.1")
    series_uid = element(0x0020, 0x000E, b"UI", series.encode())
    return bytes(128) + b"DICM" + meta + sequence + study + series_uid + element(0x0028, 0x0010, b"US", b"\0\1")


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("series", ["1.2.840.1", "1.2.840.12"])
def test_the_series_after_sequences_of_every_kind(tmp_path, name, series):
    (tmp_path / "a.dcm").write_bytes(dicom_file(series, SEQUENCES[name]))
    assert series_of(tmp_path / "a.dcm") == series


def test_what_tells_no_series(tmp_path):
    whole = dicom_file("1.2")
    lacking = whole.replace(struct.pack("<HH", 0x0020, 0x000E) + b"UI" + struct.pack("<H", 4) + b"1.2\0", b"")
    assert len(lacking) == len(whole) - 12
    wrong = (
        b"",
        b"text",
        bytes(132),
        whole[:-40],
        lacking,
        bytes(128) + b"DICM",
        bytes(128) + b"DICM" + b"\xff" * 99,
        bytes(128) + b"DICM" + element(0x0020, 0x000E, b"UN", b"1" * 258),
    )
    for number, content in enumerate(wrong):
        (tmp_path / f"{number}.dcm").write_bytes(content)
        assert series_of(tmp_path / f"{number}.dcm") is None
    assert series_of(tmp_path / "nowhere.dcm") is None


def test_nobody_waits_for_a_pipe(tmp_path):
    def too_long(*_):
        raise AssertionError("still waiting")

    os.mkfifo(tmp_path / "pipe.dcm")
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(5)
    try:
        assert series_of(tmp_path / "pipe.dcm") is None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_real_file(real_data):
    """As pydicom reads it."""
    series = "1.2.826.0.1.3680043.8.498.859956824875581540195623656735145902693"
    assert series_of(real_data / "slides" / "small_dicom.dcm") == series
