"""Hostile files: bombs, deep nesting, endless fields; each is refused in one sentence, in bounded memory."""

import gzip
import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.annotations.bounded_files import read_json, read_rows, read_table
from shared.annotations.qupath import read_objects
from shared.errors import UserError


def test_what_is_packed_is_read(tmp_path: Path) -> None:
    content = json.dumps([{"a": number} for number in range(1000)])
    with gzip.open(tmp_path / "a.geojson.gz", "wt") as file:
        file.write(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.geojson", content)
    (tmp_path / "a.json").write_text("\ufeff" + content, encoding="utf-8")
    assert all(read_json(path) == json.loads(content) for path in tmp_path.iterdir())


def bomb(path: Path, mebibytes: int) -> Path:
    """Write `mebibytes` of blanks, packed to a thousandth."""
    if path.suffix == ".gz":
        with gzip.open(path, "wb") as file:
            for _ in range(mebibytes):
                file.write(b" " * 2**20)
    else:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("a.geojson", "w", force_zip64=True) as file,
        ):
            for _ in range(mebibytes):
                file.write(b" " * 2**20)
    return path


@pytest.mark.parametrize("name", ["a.geojson.gz", "a.zip"])
def test_bombs_are_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    path = bomb(tmp_path / name, 300)
    code = (
        "import resource, sys; from pathlib import Path; from shared.annotations.bounded_files import read_json\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_json(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    sentence, mebibytes = done.stdout.splitlines()
    assert sentence.startswith("UserError") and str(path) in sentence
    assert int(mebibytes) < 180


def test_a_member_that_understates_its_size_is_no_way_around(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.zip", 1)
    damaged = path.read_bytes().replace((2**20).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.zip"):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.geojson.gz", gzip.compress(b"[" * 5000, mtime=0)[:-30] + b"damaged, as bytes at the end of it are"),
        ("a.geojson.gz", b"no gzip"),
        ("a.zip", b"no zip"),
        ("a.geojson", b"[" * 100_000 + b"]" * 100_000),
        ("a.geojson", b'{"a":' * 100_000),
        ("a.geojson", b"\xff\xfe\x00"),
        ("a.geojson", b"1" * 5000),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        read_objects(tmp_path / name)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_hierarchy_far_deeper_than_pythons_calls(tmp_path: Path) -> None:
    """Nested children within the parser's limit are all found."""
    depth = sys.getrecursionlimit() // 3 - 20
    point = '{"type": "Point", "coordinates": [1, 2]}'
    text = "[]"
    for _ in range(depth):
        properties = f'{{"classification": {{"name": "a"}}, "childObjects": {text}}}'
        text = f'[{{"type": "Feature", "geometry": {point}, "properties": {properties}}}]'
    (tmp_path / "a.geojson").write_text(text)
    assert len(read_objects(tmp_path / "a.geojson").names) == depth


@pytest.mark.parametrize("content", ["x,y,class\n1,2," + "a" * 200_000 + "\n", "x,y,class\n" + "1" * 3_000_000])
def test_endless_fields_of_csv(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=r"a\.csv"):
        list(read_table(tmp_path / "a.csv", ("x", "y", "class")))


def test_a_line_of_a_gigabyte_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"a\.csv"):
        list(read_rows(tmp_path / "a.csv"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
