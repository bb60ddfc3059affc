"""Shards and their index: nothing lost, nothing doubled, mixed, and whole or absent."""

import hashlib
import io
import itertools
import json
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from patch_extraction.config import HarvestConfig
from patch_extraction.packing import pack as packing
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import HARVESTED, KEPT, Record, slide_id, write_record
from patch_extraction.slide_store.slide_tar import SlideTar
from shared.errors import UserError
from shared.shards.format import read_index

SETTINGS = {"patch_size": 16}
NAMES = ["a.b/TCGA.1.svs", "c/TCGA.1.svs", "c/ü ß.svs", "d.svs"]


def pack(out: Path, records: list[Record], settings: dict, shard_size: int, seed: int, **options: bool) -> dict:
    return packing.pack(HarvestConfig(out=out, shard_size=shard_size, seed=seed, **options), records, settings)


def harvested(out: Path, counts: list[int]) -> list[Record]:
    """Slide tars with patches of random colours, as many as said."""
    rng = np.random.default_rng(0)
    records = []
    for name, count in zip(NAMES, counts, strict=True):
        record = Record(name, slide_id(name), name[0], HARVESTED, kept=count)
        with SlideTar(tar_path(out, record.slide_id)) as tar:
            for x in range(count):
                patch = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
                tar.add(f"{record.slide_id}_{x}_0", patch, {"slide": name, "x": x, "cells": 30 + x})
        records.append(replace(record, **tar.record_fields))
    return records


@pytest.fixture
def records(tmp_path) -> list[Record]:
    return harvested(tmp_path, [30, 50, 20, 7])


def keys(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [name.removesuffix(".jpg") for name in tar.getnames()[0::2]]


def test_plain_webdataset_reads_every_patch_once(records, tmp_path):
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    urls = [str(tmp_path / shard["name"]) for shard in index["shards"]]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(read) == index["samples"] == 107
    assert {(sample["json"]["slide"], sample["json"]["x"]) for sample in read} == {
        (name, x) for name, count in zip(NAMES, [30, 50, 20, 7], strict=True) for x in range(count)
    }
    assert all(sample["jpg"].size == (16, 16) for sample in read)


def test_every_patch_stays_with_its_json(records, tmp_path):
    pack(tmp_path, records, SETTINGS, 40, seed=0)
    for record in records:
        with tarfile.open(tar_path(tmp_path, record.slide_id)) as tar:
            originals = {name: tar.extractfile(name).read() for name in tar.getnames()}
        for shard in tmp_path.glob("shard-*.tar"):
            with tarfile.open(shard) as tar:
                for name in tar.getnames():
                    if name.startswith(record.slide_id):
                        assert tar.extractfile(name).read() == originals.pop(name)
        assert not originals


def test_index_says_what_is_there(records, tmp_path):
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    assert index == json.loads((tmp_path / "index.json").read_text()) == read_index(tmp_path)
    assert [shard["samples"] for shard in index["shards"]] == [36, 36, 35]
    for shard in index["shards"]:
        content = (tmp_path / shard["name"]).read_bytes()
        assert len(content) == shard["bytes"]
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        assert len(keys(tmp_path / shard["name"])) == shard["samples"]
    assert index["biomarkers"]["c"] == {"slides": 2, "patches": 70}
    assert index["settings"] == SETTINGS


def test_mean_and_standard_deviation(records, tmp_path):
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    pixels = []
    for shard in index["shards"]:
        with tarfile.open(tmp_path / shard["name"]) as tar:
            pixels += [np.asarray(Image.open(io.BytesIO(tar.extractfile(n).read()))) for n in tar.getnames()[0::2]]
    values = np.array(pixels).reshape(-1, 3) / 255
    assert index["mean"] == pytest.approx(values.mean(axis=0), abs=2e-3)  # as stored, JPEG rounds a little
    assert index["std"] == pytest.approx(values.std(axis=0), abs=2e-3)


def test_slides_are_mixed_in_every_shard(records, tmp_path):
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    for shard in index["shards"]:
        slides = [key.rsplit("_", 2)[0] for key in keys(tmp_path / shard["name"])]
        assert len(set(slides)) >= 3
        assert sum(a != b for a, b in itertools.pairwise(slides)) > 10  # not in runs


def test_the_seed_decides_the_order(tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        records = harvested(tmp_path / name, [30, 50, 20, 7])
        pack(tmp_path / name, records[:: -1 if name == "b" else 1], SETTINGS, 40, seed)
        orders.append([(tmp_path / name / f"shard-{i:06d}.tar").read_bytes() for i in range(3)])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_packing_again_does_nothing_unless_something_changed(records, tmp_path):
    pack(tmp_path, records, SETTINGS, 40, seed=0)
    before = (tmp_path / "shard-000001.tar").stat().st_mtime_ns
    pack(tmp_path, records, SETTINGS, 40, seed=0)
    assert (tmp_path / "shard-000001.tar").stat().st_mtime_ns == before
    index = pack(tmp_path, records[:2], SETTINGS, 40, seed=0)
    assert index["samples"] == 80
    assert sorted(path.name for path in tmp_path.glob("shard-*")) == ["shard-000000.tar", "shard-000001.tar"]


def test_a_lost_or_cut_shard_is_packed_again(records, tmp_path):
    pack(tmp_path, records, SETTINGS, 40, seed=0)
    first = (tmp_path / "shard-000000.tar").read_bytes()
    (tmp_path / "shard-000000.tar").write_bytes(first[: len(first) // 2])
    (tmp_path / "shard-000002.tar").unlink()
    pack(tmp_path, records, SETTINGS, 40, seed=0)
    assert (tmp_path / "shard-000000.tar").read_bytes() == first
    assert (tmp_path / "shard-000002.tar").is_file()


def test_a_slide_tar_cut_in_half_is_named_and_the_old_shards_stay(records, tmp_path):
    before = pack(tmp_path, records[:1], SETTINGS, 40, seed=0)
    path = tar_path(tmp_path, records[1].slide_id)
    path.write_bytes(path.read_bytes()[: records[1].bytes // 2])
    with pytest.raises(UserError, match=rf"{path.name} is damaged; run the harvest again"):
        pack(tmp_path, records, SETTINGS, 40, seed=0)
    assert read_index(tmp_path) == before
    assert len(keys(tmp_path / "shard-000000.tar")) == 30


def test_a_damaged_slide_tar_of_the_same_size_is_found_and_forgotten(records, tmp_path):
    for record in records:
        write_record(tmp_path, record)
    path = tar_path(tmp_path, records[1].slide_id)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name} is damaged; run the harvest again"):
        pack(tmp_path, records, SETTINGS, 40, seed=0)
    assert not path.with_suffix(".json").exists()
    assert len(list(tmp_path.glob("slides/*.json"))) == 3
    assert not list(tmp_path.glob("shard-*"))


def test_a_damaged_tar_whose_slide_is_gone_keeps_its_record(records, tmp_path):
    record = replace(records[1], status=KEPT)
    write_record(tmp_path, record)
    tar_path(tmp_path, record.slide_id).write_bytes(bytes(record.bytes))
    with pytest.raises(UserError, match=r"its slide c/TCGA\.1\.svs is gone; put the slide back, or remove"):
        pack(tmp_path, [record], SETTINGS, 40, seed=0)
    assert tar_path(tmp_path, record.slide_id).with_suffix(".json").exists()


def test_only_own_shards_are_removed(records, tmp_path):
    pack(tmp_path, records, SETTINGS, 40, seed=0)
    for name in ("shard-train-7.tar", "shard-000009.tar"):
        (tmp_path / name).write_text("mine")
    pack(tmp_path, records, SETTINGS, 80, seed=0)
    assert {path.name for path in tmp_path.glob("shard-*")} == {
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-train-7.tar",
        "shard-000009.tar",
    }


def test_shards_of_a_killed_packing_are_known_as_own(records, tmp_path, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("patch_extraction.packing.pack._index", die)
        pack(tmp_path, records, SETTINGS, 10, seed=0)
    assert len(list(tmp_path.glob("shard-*"))) == 11
    assert read_index(tmp_path) is None
    pack(tmp_path, records, SETTINGS, 80, seed=0)
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert not (tmp_path / ".packing.json").exists()


def shard_bytes(out: Path, index: dict) -> list[bytes]:
    return [(out / shard["name"]).read_bytes() for shard in index["shards"]]


def test_shards_are_what_tarfile_would_write(records, tmp_path):
    """Copied stretch by stretch, and yet the same bytes as a tar made member by member."""
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    for content in shard_bytes(tmp_path, index):
        made = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(content)) as tar, tarfile.open(fileobj=made, mode="w") as copy:
            copy.format = tarfile.USTAR_FORMAT
            for member in tar:
                plain = tarfile.TarInfo(member.name)
                plain.size = member.size
                copy.addfile(plain, tar.extractfile(member))
        assert made.getvalue() == content


def test_more_slides_than_files_that_may_be_open(tmp_path, monkeypatch):
    records = harvested(tmp_path, [30, 50, 20, 7])
    before = pack(tmp_path, records, SETTINGS, 40, seed=0)
    content = shard_bytes(tmp_path, before)
    (tmp_path / "shard-000001.tar").unlink()
    monkeypatch.setattr("patch_extraction.packing.shard_writer.MAX_OPEN", 2)
    assert shard_bytes(tmp_path, pack(tmp_path, records, SETTINGS, 40, seed=0)) == content


def test_memory_does_not_grow_with_the_patches(tmp_path):
    """24 MB of patches are packed within 3 MB, most of which is the list of one slide's members."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    records = []
    for name in NAMES:
        record = Record(name, slide_id(name), "", HARVESTED, kept=200)
        with SlideTar(tar_path(tmp_path, record.slide_id)) as tar:
            for x in range(200):
                tar.add(f"{record.slide_id}_{x}_0", noise, {"x": x})
        records.append(replace(record, **tar.record_fields))
    assert sum(record.bytes for record in records) > 20e6
    tracemalloc.start()
    try:
        pack(tmp_path, records, {"patch_size": 160}, 400, seed=0)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_new_slides_are_added_in_shards_of_their_own(records, tmp_path, capsys):
    first = pack(tmp_path, records[:2], SETTINGS, 40, seed=0)
    before = shard_bytes(tmp_path, first)
    index = pack(tmp_path, records, SETTINGS, 40, seed=0, add_shards=True)
    assert "2 shards stay, others are added for 2 new slides" in capsys.readouterr().out
    assert [shard["samples"] for shard in index["shards"]] == [40, 40, 27]
    assert shard_bytes(tmp_path, index)[:2] == before
    assert {key.rsplit("_", 2)[0] for key in keys(tmp_path / "shard-000002.tar")} == {
        record.slide_id for record in records[2:]
    }
    assert (index["samples"], index["slides"]) == (107, 4)
    assert not (tmp_path / ".packing.json").exists()
    assert pack(tmp_path, records, SETTINGS, 40, seed=0) == index  # nothing is new
    assert shard_bytes(tmp_path, index)[:2] == before
    anew = pack(tmp_path / "anew", harvested(tmp_path / "anew", [30, 50, 20, 7]), SETTINGS, 40, seed=0)
    assert (index["mean"], index["std"], index["tars"]) == (anew["mean"], anew["std"], anew["tars"])


def test_without_being_asked_all_is_shuffled_anew_and_that_is_said(records, tmp_path, capsys):
    pack(tmp_path, records[:2], SETTINGS, 40, seed=0)
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    said = capsys.readouterr().out
    assert "all patches are packed again, with those of 2 new slides (--add-shards" in said
    other = pack(tmp_path / "b", harvested(tmp_path / "b", [30, 50, 20, 7]), SETTINGS, 40, seed=0)
    assert shard_bytes(tmp_path, index) == shard_bytes(tmp_path / "b", other)


def test_shards_are_not_added_to_those_of_slides_that_changed_or_went(records, tmp_path):
    before = pack(tmp_path, records[:2], SETTINGS, 40, seed=0)
    for others in (records[1:], [replace(records[0], sha256="0" * 64), *records[1:]]):
        with pytest.raises(
            UserError, match=r"the patches of TCGA_1_.* are not those in the shards any more; leave"
        ):
            pack(tmp_path, others, SETTINGS, 40, seed=0, add_shards=True)
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"cannot be added in .*: shard-000001\.tar is lost or damaged; leave out"):
        pack(tmp_path, records, SETTINGS, 40, seed=0, add_shards=True)
    assert read_index(tmp_path) == before


def test_a_killed_adding_leaves_the_old_shards_whole(records, tmp_path, monkeypatch):
    before = pack(tmp_path, records[:2], SETTINGS, 40, seed=0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("patch_extraction.packing.pack._index", die)
        pack(tmp_path, records, SETTINGS, 10, seed=0, add_shards=True)
    assert read_index(tmp_path) == before
    assert len(list(tmp_path.glob("shard-*"))) == 5
    assert pack(tmp_path, records[:2], SETTINGS, 40, seed=0) == before  # as if it had not been tried
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert not (tmp_path / ".packing.json").exists()


def test_a_foreign_index_is_no_index(tmp_path):
    (tmp_path / "index.json").write_text('{"shards": []}')
    assert read_index(tmp_path) is None
    (tmp_path / "index.json").write_text('{"shards')
    assert read_index(tmp_path) is None


def test_damaged_lists_of_shards(records, tmp_path):
    index = pack(tmp_path, records, SETTINGS, 40, seed=0)
    content = shard_bytes(tmp_path, index)
    del index["shards"][1]["bytes"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert shard_bytes(tmp_path, pack(tmp_path, records, SETTINGS, 40, seed=0)) == content
    (tmp_path / ".packing.json").write_text('{"shards": 5}')
    with pytest.raises(UserError, match=r"\.packing\.json is damaged; remove it"):
        pack(tmp_path, records, SETTINGS, 80, seed=0)


def test_shards_that_a_lost_index_listed_are_named(records, tmp_path, capsys):
    """They are left alone, as they may be anybody's, but not without a word: readers may take them."""
    pack(tmp_path, records, SETTINGS, 10, seed=0)
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "index.json").unlink()
    pack(tmp_path, records, SETTINGS, 80, seed=0)
    assert "shard-000002.tar and 8 more are not of this harvest; remove" in capsys.readouterr().err
