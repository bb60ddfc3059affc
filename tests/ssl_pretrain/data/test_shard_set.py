"""The folder of shards: what is read from it, and what is refused."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import webdataset

from shared.errors import UserError
from shared.shards.tar_reader import count_images, read_images
from shared.weights.weights_file import IMAGENET_MEAN
from ssl_pretrain.data import shard_set as shard_set_module
from ssl_pretrain.data.shard_set import check_sums, count_foreign, open_shards, remember
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
    assert [image.content for _, image in found] == [sample["jpg"] for sample in expected]
    assert count_images(path).samples == len(names)


def _member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.mtime = len(content), kind, 1.5
    return member


def test_part_of_a_shard_without_what_has_passed(tmp_path: Path):
    path = write_shards(tmp_path, [10], flat) / "shard-000000.tar"
    assert [number for number, _ in read_images(path, 3, 8, 10, skip={4, 6})] == [3, 5, 7]


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


@pytest.mark.parametrize("content", ["{", "[]", "7", '{"shards": [{"name": "a.tar"}], "mean": [], "std": []}'])
def test_index_that_is_none(tmp_path: Path, content: str):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/index.json is not an index of shards")):
        open_shards(tmp_path)


def test_index_that_is_a_folder(tmp_path: Path):
    (tmp_path / "index.json").mkdir()
    with pytest.raises(UserError, match=r"index.json is not an index of shards \(IsADirectoryError"):
        open_shards(tmp_path)


def test_index_with_values_that_cannot_be(tmp_path: Path):
    folder = write_shards(tmp_path, [2, 2], flat)
    good = (folder / "index.json").read_text()
    bad_channels = [[0.5, 0.5], [0.5] * 4, [0.5, 0.5, float("nan")], [0.5, 0.5, 2], [0.5, 0.5, 10**400], "abc"]
    names = ["../shard-000000.tar", "", "..", "a\0.tar", 7, entries(folder)[1]["name"]]
    changes = [{"mean": mean} for mean in bad_channels] + [{"std": std} for std in (*bad_channels, [0.1, 0.1, 0])]
    for entry in [{"name": name} for name in names] + [{"samples": n} for n in (-1, 2.5, "2", None, True)]:
        changes.append({"shards": [{**entries(folder)[0], **entry}, entries(folder)[1]]})
    changes.append({"shards": [{**entries(folder)[0], "sha256": 5}]})
    changes += [{"settings": None}, {"settings": [1]}]  # which the model card would stumble over in the end
    for change in changes:
        (folder / "index.json").write_text(good)
        open_shards(folder)
        edit_index(folder, **change)
        with pytest.raises(UserError, match=r"index.json is not an index of shards .*; remove it and run"):
            open_shards(folder)


def test_shards_that_are_being_packed(tmp_path: Path):
    folder = write_shards(tmp_path, [2], flat)
    (folder / ".packing.json").write_text('{"shards": ["shard-000000.tar"]}')
    assert open_shards(folder).samples == 2  # the index comes last: with it they are whole
    (folder / "index.json").unlink()
    with pytest.raises(
        UserError, match=r"still being packed, or its packing was interrupted; wait, or run python"
    ):
        open_shards(folder)


def test_only_the_picture_itself_counts_among_the_files_of_a_sample(tmp_path: Path):
    """As webdataset has it: the key ends at the first dot of the name, `a.mask.jpg` is the `mask.jpg` of `a`."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("v1.0/a.jpg", "v1.0/a.mask.jpg", "v1.0/._a.jpg", ".jpg", "v1.0/b.JPEG", "c.jpg.json", "jpg"):
            content = name.encode()
            tar.addfile(_member(name, content), io.BytesIO(content))
    assert open_shards(tmp_path).samples == 2
    images = [image for _, image in read_images(tmp_path / "shard.tar", 0, 2, 2)]
    assert [(image.key, image.content) for image in images] == [
        ("v1.0/a", b"v1.0/a.jpg"),
        ("v1.0/b", b"v1.0/b.JPEG"),
    ]


def test_foreign_shard_that_cannot_be_opened_is_not_called_listed(tmp_path: Path):
    (tmp_path / "shard.tar").mkdir()
    with pytest.raises(UserError, match=r"the shard \S+shard.tar cannot be read \(Is a directory\); replace it"):
        open_shards(tmp_path)


def test_index_without_patches(tmp_path: Path):
    write_shards(tmp_path, [], flat)
    with pytest.raises(UserError, match=r"lists no patches; harvest some with: python -m patch_extraction"):
        open_shards(tmp_path)


def tar_of(path: Path, names: list[str], content: bytes = b"image") -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(_member(name, content), io.BytesIO(content))
    return path


def keys(path: Path) -> list[str]:
    count = count_images(path).samples
    return [image.key for _, image in read_images(path, 0, count, count)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "a.json", "b.jpg", "b.json"], ["a", "b"]),
        (["TCGA-A1.slide.0001.jpg", "TCGA-A1.slide.0002.jpg"], ["TCGA-A1.slide.0001", "TCGA-A1.slide.0002"]),
        (["a.input.jpg", "a.target.png", "b.input.jpg"], ["a", "b"]),
        (["a.heat.png", "a.jpg", "a.mask.png"], ["a"]),
    ],
    ids=["png", "dots", "input", "beside"],
)
def test_every_sample_of_foreign_shards_is_read_once(tmp_path: Path, names: list[str], expected: list[str]):
    assert keys(tar_of(tmp_path / "a.tar", names)) == expected


def test_plain_image_of_a_sample_comes_before_others(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.heat.png", "a.jpg", "b.heat.png"):
            tar.addfile(_member(name, name.encode()), io.BytesIO(name.encode()))
    assert [image.content for _, image in read_images(tmp_path / "a.tar", 0, 2, 2)] == [b"a.jpg", b"b.heat.png"]


def test_members_that_are_not_read_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tar_of(tmp_path / "a.tar", ["a.jpg", "a.mask.png", "b.tif", "b.json", "c.tif"])
    (tmp_path / "b.tar.gz").touch()
    assert open_shards(tmp_path).samples == 1
    out = capsys.readouterr().out
    assert "2 .tif" in out and "1 .mask.png" in out and "b.tar.gz" in out


@pytest.mark.parametrize(
    ("place", "shards", "named"),
    [
        ("a.tar.gz", "", "a.tar.gz"),
        ("train/a.tar", "", "train"),
        ("a.tar", "a.tar", "folder"),
        ("a.tar", "{000..009}.tar", "pattern"),
    ],
)
def test_what_is_no_folder_of_tars_is_named(tmp_path: Path, place: str, shards: str, named: str):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    tar_of(tmp_path / place, ["a.jpg"])
    with pytest.raises(UserError, match=named):
        open_shards(tmp_path / shards)


def test_counting_reads_headers_only(tmp_path: Path):
    path = tar_of(tmp_path / "a.tar", [f"{n}.jpg" for n in range(40)], content=bytes(200_000))
    before = bytes_read()
    assert count_images(path).samples == 40
    assert bytes_read() - before < 100_000


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def test_shards_are_counted_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, memory = tmp_path / "shards", tmp_path / "shards.json"
    folder.mkdir()
    tar_of(folder / "a.tar", ["a.jpg", "b.jpg"])
    tar_of(folder / "b.tar", ["c.jpg"])
    first = count_foreign(folder, memory)
    remember(open_shards(folder, first), memory)
    counted = []
    count = shard_set_module.count_images
    monkeypatch.setattr(shard_set_module, "count_images", lambda path: counted.append(path.name) or count(path))
    assert count_foreign(folder, memory) == first and not counted
    tar_of(folder / "b.tar", [f"{n}.jpg" for n in range(20)])
    assert count_foreign(folder, memory)["b.tar"][0] == 20 and counted == ["b.tar"]
