"""Slide tars -> shuffled shards and their index: many slides in every shard, in constant memory.

`index.json` is removed before the first shard is touched and written after the last one, so a folder with an
index is whole; in between `.packing.json` names the shards that are the harvest's own. Where shards are only
added, the old index stays until the new one takes its place. The index lists the shards (samples, bytes,
SHA-256), the slides' tars in them, the settings, and the mean and standard deviation of the patches' pixels.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.packing.shard_writer import Samples, write_shard
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import KEPT, Record
from shared.errors import UserError
from shared.files import write_json
from shared.training.run_folder import progress

FORMAT = "dpa-p2pnet shards 1"
INDEX = "index.json"
JOURNAL = ".packing.json"
SHARD = re.compile(r"shard-\d{6}\.tar")
SHARD_FIELDS = {"name", "samples", "bytes", "sha256"}  # of a shard in the index


class DamagedTarError(UserError):
    """Slides' tars that are not as their records say; those records are forgotten, so the slides can be redone."""

    def __init__(self, sentence: str, slide_ids: set[str]) -> None:
        super().__init__(sentence)
        self.slide_ids = slide_ids


def pack(
    out: Path,
    records: Sequence[Record],
    settings: Mapping[str, Any],
    shard_size: int,
    seed: int,
    add_shards: bool = False,
) -> dict[str, Any]:
    """Write `shard-%06d.tar` and `index.json` from the slides' tars; returns the index.

    Nothing is written where the shards there are already made of the same tars.

    Args:
        out: The output folder.
        records: Of all slides; those without patches do not matter.
        settings: For the index.
        shard_size: Samples in a shard, about.
        seed: Decides the order.
        add_shards: Leave the shards of an earlier packing alone and write further ones for what is new.

    Raises:
        DamagedTarError: slides' tars are damaged, and the slides can be harvested again.
        UserError: the same of slides that are gone; shards cannot be added to those that are there.
    """
    records = sorted((record for record in records if record.kept), key=lambda record: record.slide_id)
    index = read_index(out)
    if index is not None and _up_to_date(out, index, records, shard_size, seed):
        _remove(out, own_shards(out) - set(_names(index)))  # of a process killed between the index and here
        (out / JOURNAL).unlink(missing_ok=True)
        return index
    old = _to_extend(out, index, records) if add_shards else []
    packed = index["tars"] if old and index else {}
    new = [record for record in records if record.slide_id not in packed]
    _say_what_is_new(index, records, old)
    _check_tars(out, new)
    shards = _write_shards(out, new, shard_size, seed, old)
    index = _index(records, settings, [*old, *shards], shard_size, seed)
    write_json(out / INDEX, index)
    _remove(out, own_shards(out) - set(_names(index)))
    (out / JOURNAL).unlink()
    _say_what_is_foreign(out, index)
    return index


def discard(out: Path) -> None:
    """Remove the index and then the shards it lists, before slides are harvested with other settings."""
    _enter_in_journal(out, [])
    (out / INDEX).unlink(missing_ok=True)
    _remove(out, own_shards(out))
    (out / JOURNAL).unlink()


def own_shards(out: Path) -> set[str]:
    """Names of the shards that a harvest wrote or was about to write; all others are somebody else's.

    Raises:
        UserError: the list of those that it was about to write is damaged.
    """
    index = read_index(out)
    names = set() if index is None else set(_names(index))
    if (out / JOURNAL).exists():
        try:
            names |= set(json.loads((out / JOURNAL).read_text(encoding="utf-8"))["shards"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{out / JOURNAL} is damaged; remove it and start the same command again") from error
    return {name for name in names if SHARD.fullmatch(name)}


def read_index(out: Path) -> dict[str, Any] | None:
    """The index of a folder of shards, or None where there is none of this format, or a damaged one."""
    try:
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
        whole = index["format"] == FORMAT and all(shard.keys() >= SHARD_FIELDS for shard in index["shards"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return index if whole else None


def _names(index: Mapping[str, Any]) -> list[str]:
    return [shard["name"] for shard in index["shards"]]


def _enter_in_journal(out: Path, names: Sequence[str]) -> None:
    """Remember which shards are our own: those of the index and `names`, to be written."""
    write_json(out / JOURNAL, {"shards": sorted(own_shards(out) | set(names))})


def _remove(out: Path, names: Iterable[str]) -> None:
    for name in names:
        (out / name).unlink(missing_ok=True)


def _up_to_date(
    out: Path, index: Mapping[str, Any], records: Sequence[Record], shard_size: int, seed: int
) -> bool:
    """Whether the shards there hold just these slides, packed as asked for."""
    asked = {
        "tars": {record.slide_id: record.sha256 for record in records},
        "shard_size": shard_size,
        "seed": seed,
    }
    return all(index.get(name) == value for name, value in asked.items()) and not _broken_shard(out, index)


def _broken_shard(out: Path, index: Mapping[str, Any]) -> str:
    """The first shard of the index that is not there with its size; empty if all are."""
    for shard in index["shards"]:
        path = out / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            return str(shard["name"])
    return ""


def _to_extend(out: Path, index: Mapping[str, Any] | None, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The shards that stay where others are added to them.

    Raises:
        UserError: one is damaged, or holds patches of a slide that has changed or is gone.
    """
    if index is None:
        return []
    fault = _broken_shard(out, index)
    reason = f"{fault} is lost or damaged"
    if not fault:
        current = {record.slide_id: record.sha256 for record in records}
        tars: dict[str, str] = index.get("tars", {"": "of an older version"})
        fault = next((slide_id for slide_id, sha256 in tars.items() if current.get(slide_id) != sha256), "")
        reason = f"the patches of {fault or 'some slides'} are not those in the shards any more"
    if fault:
        raise UserError(f"shards cannot be added in {out}: {reason}; leave out --add-shards to pack all anew")
    return list(index["shards"])


def _say_what_is_new(
    index: Mapping[str, Any] | None, records: Sequence[Record], old: Sequence[Mapping[str, Any]]
) -> None:
    if index is None:
        return
    new = sum(record.slide_id not in index.get("tars", {}) for record in records)
    if old:
        print(f"{len(old)} shards stay, others are added for {new} new slides", flush=True)
    elif new and new < len(records):
        print(
            f"all patches are packed anew, those of {new} new slides among them (--add-shards would leave the "
            "shards alone and add others)",
            flush=True,
        )


def _say_what_is_foreign(out: Path, index: Mapping[str, Any]) -> None:
    """Name shards that are not ours, or of which a lost index cannot say that any more; readers may take them."""
    names = {path.name for path in out.glob("shard-*.tar") if SHARD.fullmatch(path.name)}
    if foreign := sorted(names - set(_names(index))):
        count = f"{foreign[0]} and {len(foreign) - 1} more are" if len(foreign) > 1 else f"{foreign[0]} is"
        print(f"warning: in {out} {count} not of this harvest; remove what is not in {INDEX}", file=sys.stderr)


def _check_tars(out: Path, records: Sequence[Record]) -> None:
    """Refuse tars that are not as their records say, and forget those records: the next run redoes the slides.

    Raises:
        DamagedTarError: names the first such tar.
        UserError: the same of a slide that is gone; it keeps its record, nothing could replace it.
    """
    damaged = []
    with progress(len(records), "slide", description="checking") as bar:
        for record in records:
            if sha256_of(tar_path(out, record.slide_id)) != record.sha256:
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
    raise DamagedTarError(
        f"{tar} {are} damaged; start the harvest again, it makes such slides' patches anew",
        {record.slide_id for record in damaged},
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _write_shards(
    out: Path, records: Sequence[Record], shard_size: int, seed: int, old: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write the shards of these slides, numbered on from `old`; returns their entries in the index."""
    samples = Samples.of([tar_path(out, record.slide_id) for record in records])
    # The first packing is shuffled by the seed alone; what is added later must not repeat its order.
    order = np.random.default_rng((seed, len(old)) if old else seed).permutation(len(samples))
    parts = np.array_split(order, math.ceil(len(samples) / shard_size))
    names = [f"shard-{number:06d}.tar" for number in range(len(old), len(old) + len(parts))]
    _enter_in_journal(out, names)
    if not old:
        (out / INDEX).unlink(missing_ok=True)
    shards = []
    with progress(len(parts), "shard", description="packing") as bar:
        for name, part in zip(names, parts, strict=True):
            shards.append(write_shard(out / name, samples, part))
            bar.update()
    return shards


def _index(
    records: Sequence[Record],
    settings: Mapping[str, Any],
    shards: list[dict[str, Any]],
    shard_size: int,
    seed: int,
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
        "shard_size": shard_size,
        "seed": seed,
        "shards": shards,
        "tars": {record.slide_id: record.sha256 for record in records},
    }


def _mean_and_std(records: Sequence[Record], patch_size: int) -> tuple[list[float], list[float]]:
    """Of red, green and blue in 0..1, over all pixels of all patches."""
    pixels = sum(record.kept for record in records) * patch_size**2
    sums = np.sum([record.pixel_sums[0] for record in records], axis=0) / pixels
    squares = np.sum([record.pixel_sums[1] for record in records], axis=0) / pixels
    std = np.sqrt(squares - sums**2)
    return [round(float(v) / 255, 6) for v in sums], [round(float(v) / 255, 6) for v in std]
