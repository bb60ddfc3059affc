"""Shards and their index: nothing lost, nothing doubled, mixed, and whole or absent."""

import hashlib
import io
import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from patch_extraction.pack import pack, read_index
from patch_extraction.slide_tar import HARVESTED, KEPT, Record, SlideTar, slide_id, tar_path, write_record
from shared.command_line import UserError

SETTINGS = {"patch_size": 16}
NAMES = ["a.b/TCGA.1.svs", "c/TCGA.1.svs", "c/ü ß.svs", "d.svs"]


def harvested(out: Path, counts: list[int]) -> list[Record]:
    """Slide tars with patches of random colours, as many as said."""
    rng = np.random.default_rng(0)
    records = []
    for name, count in zip(NAMES, counts, strict=True):
        record = Record(name, slide_id(name), name[0], HARVESTED, kept=count)
        with SlideTar(tar_path(out, record.slide_id)) as tar:
            for x in range(count):
                patch = Image.new("RGB", (16, 16), tuple(rng.integers(0, 256, 3).tolist()))
                tar.add(f"{record.slide_id}_{x}_0", patch, {"slide": name, "x": x, "cells": 30 + x})
        records.append(replace(record, **tar.facts))
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
    with pytest.raises(UserError, match=rf"{path.name} is damaged; start the harvest again"):
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
    with pytest.raises(UserError, match=rf"{path.name} is damaged; start the harvest again"):
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
        patched.setattr("patch_extraction.pack._index", die)
        pack(tmp_path, records, SETTINGS, 10, seed=0)
    assert len(list(tmp_path.glob("shard-*"))) == 11
    assert read_index(tmp_path) is None
    pack(tmp_path, records, SETTINGS, 80, seed=0)
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert not (tmp_path / ".packing.json").exists()


def test_a_foreign_index_is_no_index(tmp_path):
    (tmp_path / "index.json").write_text('{"shards": []}')
    assert read_index(tmp_path) is None
    (tmp_path / "index.json").write_text('{"shards')
    assert read_index(tmp_path) is None
