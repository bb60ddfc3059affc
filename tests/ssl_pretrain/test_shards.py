"""The folder of shards: what is read from it, and what is refused."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import webdataset

from shared.command_line import UserError
from shared.weights import IMAGENET_MEAN
from ssl_pretrain.shards import check_sums, count_images, open_shards, read_images
from tests.ssl_pretrain.conftest import damage, flat, jpeg, write_shards


def edit_index(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "index.json").read_text())["shards"]


def test_only_indexed_shards_count_and_statistics_come_from_the_index(tmp_path: Path):
    folder = write_shards(tmp_path / "shards", [3, 4], flat)
    (folder / "shard-000002.tar").write_bytes(b"left behind by a harvest that was killed")
    shard_set = open_shards(folder)
    assert shard_set.counts == [3, 4] and shard_set.samples == 7 and shard_set.indexed
    assert shard_set.mean == (0.7, 0.6, 0.65) and shard_set.std == (0.2, 0.21, 0.19)
    assert shard_set.settings == {"patch_mpp": 0.25}


def test_foreign_shards_are_counted(tmp_path: Path):
    folder = write_shards(tmp_path / "shards", [3, 4], flat)
    (folder / "index.json").unlink()
    shard_set = open_shards(folder)
    assert shard_set.counts == [3, 4] and not shard_set.indexed and shard_set.mean == IMAGENET_MEAN


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_those_that_webdataset_reads(tmp_path: Path, layout: int):
    """In all tar layouts, with long and non-ASCII names, folders and other files between the images."""
    names = ["a", "b" * 90, "folder/deep/" + "ü" * 40, "Präparat_" + "7" * 30, "last"]
    if layout != tarfile.USTAR_FORMAT:
        names.append("folder/" + "long" * 60)
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        tar.addfile(_member("folder", b"", tarfile.DIRTYPE))
        for number, name in enumerate(names):
            tar.addfile(_member(f"{name}.json", b"{}"), io.BytesIO(b"{}"))
            content = jpeg(flat(number))
            tar.addfile(_member(f"{name}.jpg", content), io.BytesIO(content))
    expected = list(webdataset.WebDataset(str(path), shardshuffle=False))
    found = list(read_images(path, 0, len(names), len(names)))
    assert [number for number, _ in found] == list(range(len(names)))
    assert [image.key for _, image in found] == [sample["__key__"] for sample in expected] == names
    assert [image.jpeg for _, image in found] == [sample["jpg"] for sample in expected]
    assert count_images(path) == len(names)


def _member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.mtime = len(content), kind, 1.5
    return member


def test_part_of_a_shard_without_what_has_passed(tmp_path: Path):
    path = write_shards(tmp_path, [10], flat) / "shard-000000.tar"
    assert [number for number, _ in read_images(path, 3, 8, 10, passed={4, 6})] == [3, 5, 7]


@pytest.mark.parametrize("samples", [9, 11])
def test_another_number_of_images_than_indexed_is_refused(tmp_path: Path, samples: int):
    path = write_shards(tmp_path, [10], flat) / "shard-000000.tar"
    with pytest.raises(UserError, match=rf"{path}.* holds 10 images and index.json says {samples}"):
        list(read_images(path, 0, samples, samples))


def test_sums_are_compared(tmp_path: Path):
    folder = write_shards(tmp_path, [5, 5], flat)
    path = folder / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    shard_set = open_shards(folder)  # looks whole
    check_sums(shard_set, range(1))
    with pytest.raises(UserError, match=rf"{path}.*SHA-256.*python -m patch_extraction"):
        check_sums(shard_set, range(2))


def test_missing_and_empty_folders_name_the_command_that_makes_shards(tmp_path: Path):
    with pytest.raises(UserError, match=r"no folder of shards .*/absent; .*python -m patch_extraction --wsi-dir"):
        open_shards(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no shards in .*; make them with: python -m patch_extraction"):
        open_shards(tmp_path)
    write_shards(tmp_path / "slides", [2], flat)
    with pytest.raises(UserError, match=r"no shards were packed.*; run python -m patch_extraction again"):
        open_shards(tmp_path)


def test_shard_cut_in_half_is_refused(tmp_path: Path):
    folder = write_shards(tmp_path, [5, 5], flat)
    damage(folder / "shard-000001.tar")
    with pytest.raises(UserError, match=r"shard-000001.tar is damaged: it is cut short; .* to repack it"):
        open_shards(folder)


def test_foreign_shard_cut_at_a_block_of_zeros_is_refused(tmp_path: Path):
    """Where the cheap look at the end cannot see it, reading does."""
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(_member("a.jpg", bytes(4096)), io.BytesIO(bytes(4096)))
    with path.open("r+b") as file:
        file.truncate(512 + 2048)
    with pytest.raises(UserError, match=r"shard.tar is damaged: it is cut short"):
        open_shards(tmp_path)


def test_listed_shard_that_is_missing(tmp_path: Path):
    folder = write_shards(tmp_path, [5, 5], flat)
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000000.tar, listed in index.json, cannot be read"):
        open_shards(folder)


def test_something_else_than_a_tar(tmp_path: Path):
    (tmp_path / "notes.tar").write_text("no tar file " * 200)
    with pytest.raises(UserError, match=r"notes.tar is damaged: it is not a tar file"):
        open_shards(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"shards": [{"name": "a.tar"}], "mean": [], "std": []}'])
def test_index_that_is_none(tmp_path: Path, content: str):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/index.json is not an index of shards")):
        open_shards(tmp_path)


def test_index_without_patches(tmp_path: Path):
    write_shards(tmp_path, [], flat)
    with pytest.raises(UserError, match=r"lists no patches; harvest some with: python -m patch_extraction"):
        open_shards(tmp_path)
