"""Slide tars -> shuffled shards and their index: many slides in every shard, in constant memory.

`index.json` is removed before the first shard is touched and written after the last one, so a folder with an
index is whole; in between `.packing.json` names the shards that are the harvest's own. The index lists the
shards (samples, bytes, SHA-256), the settings, and the mean and standard deviation of the patches' pixels.
"""

import hashlib
import json
import math
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.slide_tar import KEPT, Record, Span, add_member, members, read_at, tar_path
from shared.atomic import atomic_path, write_json
from shared.command_line import UserError
from shared.runs import progress

FORMAT = "dpa-p2pnet shards 1"
INDEX = "index.json"
JOURNAL = ".packing.json"
SHARD = re.compile(r"shard-\d{6}\.tar")


@dataclass(frozen=True)
class Sample:
    """Where a patch lies: the slide's tar, the key, the places of its picture and of its JSON."""

    tar: Path
    key: str
    picture: Span
    text: Span


def pack(
    out: Path, records: Sequence[Record], settings: Mapping[str, Any], shard_size: int, seed: int
) -> dict[str, Any]:
    """Write `shard-%06d.tar` and `index.json` from the slides' tars; returns the index.

    Nothing is written where the shards there are already made of the same tars.

    Raises:
        UserError: slides' tars are damaged; starting again makes them anew.
    """
    records = sorted((record for record in records if record.kept), key=lambda record: record.slide_id)
    source = _digest(records, shard_size, seed)
    index = read_index(out)
    if index is not None and index["source"] == source and _shards_whole(out, index):
        (out / JOURNAL).unlink(missing_ok=True)  # of a process killed between the index and here
        return index
    _check_tars(out, records)
    samples = [sample for record in records for sample in _samples(tar_path(out, record.slide_id))]
    order = np.random.default_rng(seed).permutation(len(samples))
    parts = np.array_split(order, math.ceil(len(samples) / shard_size))
    names = [f"shard-{number:06d}.tar" for number in range(len(parts))]
    _withdraw_index(out, names)
    shards = []
    with progress(len(parts), "shard", description="packing") as bar:
        for name, part in zip(names, parts, strict=True):
            shards.append(_write_shard(out / name, [samples[i] for i in part]))
            bar.update()
    _remove(out, own_shards(out) - set(names))
    index = _index(records, settings, shards, source)
    write_json(out / INDEX, index)
    (out / JOURNAL).unlink()
    return index


def discard(out: Path) -> None:
    """Remove the index and then the shards it lists, before slides are harvested with other settings."""
    _withdraw_index(out)
    _remove(out, own_shards(out))
    (out / JOURNAL).unlink()


def own_shards(out: Path) -> set[str]:
    """Names of the shards that a harvest wrote or was about to write; all others are somebody else's."""
    index = read_index(out)
    names = set() if index is None else {shard["name"] for shard in index["shards"]}
    if (out / JOURNAL).exists():
        names |= set(json.loads((out / JOURNAL).read_text(encoding="utf-8"))["shards"])
    return {name for name in names if SHARD.fullmatch(name)}


def read_index(out: Path) -> dict[str, Any] | None:
    """The index of a folder of shards, or None where there is none of this format."""
    try:
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) and index.get("format") == FORMAT else None


def _withdraw_index(out: Path, names: Sequence[str] = ()) -> None:
    """Remove the index, remembering which shards are our own: those it lists and `names`, to be written."""
    write_json(out / JOURNAL, {"shards": sorted(own_shards(out) | set(names))})
    (out / INDEX).unlink(missing_ok=True)


def _remove(out: Path, names: Iterable[str]) -> None:
    for name in names:
        (out / name).unlink(missing_ok=True)


def _digest(records: Sequence[Record], shard_size: int, seed: int) -> str:
    lines = [f"{record.slide_id} {record.sha256}" for record in records]
    return hashlib.sha256("\n".join([f"{shard_size} {seed}", *lines]).encode()).hexdigest()


def _shards_whole(out: Path, index: Mapping[str, Any]) -> bool:
    """Whether every shard of the index is there with its size."""
    paths = [(out / shard["name"], shard["bytes"]) for shard in index["shards"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _check_tars(out: Path, records: Sequence[Record]) -> None:
    """Refuse tars that are not as their records say, and forget those records: the next run redoes the slides.

    Raises:
        UserError: names the first such tar; a slide that is gone keeps its record, nothing could replace it.
    """
    damaged = []
    with progress(len(records), "slide", description="checking") as bar:
        for record in records:
            if _sha256(tar_path(out, record.slide_id)) != record.sha256:
                damaged.append(record)
            bar.update()
    if not damaged:
        return
    for record in damaged:
        if record.status != KEPT:
            tar_path(out, record.slide_id).with_suffix(".json").unlink(missing_ok=True)
    lost = [record for record in damaged if record.status == KEPT]
    tar = tar_path(out, (lost or damaged)[0].slide_id)
    if lost:
        raise UserError(
            f"{tar} is damaged, and its slide {lost[0].slide} is gone; put the slide back, "
            f"or remove {tar.with_suffix('.json')} to go on without its patches"
        )
    are = f"and {len(damaged) - 1} more are" if len(damaged) > 1 else "is"
    raise UserError(f"{tar} {are} damaged; start the harvest again, it makes such slides' patches anew")


def _sha256(path: Path) -> str:
    """The SHA-256 of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _samples(path: Path) -> list[Sample]:
    """The samples of a slide's tar."""
    with path.open("rb") as file:
        found = members(file)
    pairs = zip(found[0::2], found[1::2], strict=True)
    return [Sample(path, name.removesuffix(".jpg"), picture, text) for (name, picture), (_, text) in pairs]


def _write_shard(path: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Write one shard atomically; returns its entry in the index."""
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                with sample.tar.open("rb") as file:
                    add_member(tar, f"{sample.key}.jpg", read_at(file, sample.picture))
                    add_member(tar, f"{sample.key}.json", read_at(file, sample.text))
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    return {"name": path.name, "samples": len(samples), "bytes": size, "sha256": sha256}


def _index(
    records: Sequence[Record], settings: Mapping[str, Any], shards: list[dict[str, Any]], source: str
) -> dict[str, Any]:
    mean, std = _mean_and_std(records, settings["patch_size"])
    biomarkers: dict[str, dict[str, int]] = {}
    for record in records:
        entry = biomarkers.setdefault(record.biomarker, {"slides": 0, "patches": 0})
        entry["slides"] += 1
        entry["patches"] += record.kept
    return {
        "format": FORMAT,
        "samples": sum(record.kept for record in records),
        "slides": len(records),
        "biomarkers": dict(sorted(biomarkers.items())),
        "mean": mean,
        "std": std,
        "settings": dict(settings),
        "source": source,
        "shards": shards,
    }


def _mean_and_std(records: Sequence[Record], patch_size: int) -> tuple[list[float], list[float]]:
    """Of red, green and blue in 0..1, over all pixels of all patches."""
    pixels = sum(record.kept for record in records) * patch_size**2
    sums = np.sum([record.pixel_sums[0] for record in records], axis=0) / pixels
    squares = np.sum([record.pixel_sums[1] for record in records], axis=0) / pixels
    std = np.sqrt(squares - sums**2)
    return [round(float(v) / 255, 6) for v in sums], [round(float(v) / 255, 6) for v in std]
