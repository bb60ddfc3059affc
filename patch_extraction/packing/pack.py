"""Packing: slide tars to shuffled shards with an index, in constant memory.

Every shard holds patches of many slides. The protocol of index and journal is that of `shared.shards.format`.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.config import HarvestConfig
from patch_extraction.packing.shard_writer import Samples, write_shard
from patch_extraction.slide_store.file_names import record_path, tar_path
from patch_extraction.slide_store.slide_record import KEPT, Record
from shared.errors import UserError
from shared.files import sha256_of, write_json
from shared.shards.format import (
    FORMAT,
    INDEX,
    JOURNAL,
    SHARD,
    own_shards,
    read_index,
    shard_name,
    shard_names,
    write_journal,
)
from shared.training.run_folder import progress


class DamagedTarError(UserError):
    """Slide tars that differ from their records; the records are removed, so that the slides can be redone."""

    def __init__(self, sentence: str, slide_ids: set[str]) -> None:
        super().__init__(sentence)
        self.slide_ids = slide_ids


def pack(config: HarvestConfig, records: Sequence[Record], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write `shard-%06d.tar` and `index.json` from the slide tars; return the index.

    Nothing is written if the existing shards are made of the same tars.

    Args:
        config: Output folder, size of shards, random seed of the order, and whether shards are added.
        records: Records of all slides; those without patches are ignored.
        settings: Content of the index.

    Raises:
        DamagedTarError: slide tars are damaged, and the slides can be harvested again.
        UserError: tars of absent slides are damaged; shards cannot be added to the existing ones.
    """
    out, shard_size, seed = config.out, config.shard_size, config.seed
    records = sorted((record for record in records if record.kept), key=lambda record: record.slide_id)
    index = read_index(out)
    if index is not None and _is_up_to_date(out, index, records, shard_size, seed):
        _remove(out, own_shards(out) - set(shard_names(index)))  # of a process killed before its last step
        (out / JOURNAL).unlink(missing_ok=True)
        return index
    old = _shards_to_keep(out, index, records) if config.add_shards else []
    packed = index["tars"] if old and index else {}
    new = [record for record in records if record.slide_id not in packed]
    _print_plan(index, records, old)
    _require_intact(out, new)
    shards = _write_shards(out, new, shard_size, seed, old)
    index = _index(records, settings, [*old, *shards], shard_size, seed)
    write_json(out / INDEX, index)
    _remove(out, own_shards(out) - set(shard_names(index)))
    (out / JOURNAL).unlink()
    _warn_of_foreign_shards(out, index)
    return index


def discard(out: Path) -> None:
    """Remove the index and then its shards, before slides are harvested with other settings."""
    write_journal(out, [])
    (out / INDEX).unlink(missing_ok=True)
    _remove(out, own_shards(out))
    (out / JOURNAL).unlink()


def _remove(out: Path, names: Iterable[str]) -> None:
    for name in names:
        (out / name).unlink(missing_ok=True)


def _is_up_to_date(
    out: Path, index: Mapping[str, Any], records: Sequence[Record], shard_size: int, seed: int
) -> bool:
    """Return whether the existing shards hold just these slides, packed as requested."""
    requested = {
        "tars": {record.slide_id: record.sha256 for record in records},
        "shard_size": shard_size,
        "seed": seed,
    }
    return all(index.get(name) == value for name, value in requested.items()) and not _broken_shard(out, index)


def _broken_shard(out: Path, index: Mapping[str, Any]) -> str:
    """Return the first shard of the index that is absent or of another size; empty if none is."""
    for shard in index["shards"]:
        path = out / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            return str(shard["name"])
    return ""


def _shards_to_keep(out: Path, index: Mapping[str, Any] | None, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the shards to which others are added.

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
        raise UserError(f"shards cannot be added in {out}: {reason}; leave out --add-shards to pack all again")
    return list(index["shards"])


def _print_plan(
    index: Mapping[str, Any] | None, records: Sequence[Record], old: Sequence[Mapping[str, Any]]
) -> None:
    if index is None:
        return
    new = sum(record.slide_id not in index.get("tars", {}) for record in records)
    if old:
        print(f"{len(old)} shards stay, others are added for {new} new slides", flush=True)
    elif new and new < len(records):
        print(
            f"all patches are packed again, with those of {new} new slides (--add-shards would only add shards)",
            flush=True,
        )


def _warn_of_foreign_shards(out: Path, index: Mapping[str, Any]) -> None:
    """Name shards that are not listed, because they are foreign or their index was lost; some readers take
    them."""
    names = {path.name for path in out.glob("shard-*.tar") if SHARD.fullmatch(path.name)}
    if foreign := sorted(names - set(shard_names(index))):
        count = f"{foreign[0]} and {len(foreign) - 1} more are" if len(foreign) > 1 else f"{foreign[0]} is"
        print(f"warning: in {out} {count} not of this harvest; remove what is not in {INDEX}", file=sys.stderr)


def _require_intact(out: Path, records: Sequence[Record]) -> None:
    """Refuse tars that differ from their records, and remove these records, so that the slides are redone.

    Raises:
        DamagedTarError: names the first such tar.
        UserError: a tar of an absent slide is damaged; its record stays, as nothing could replace it.
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
            record_path(out, record.slide_id).unlink(missing_ok=True)
    lost = [record for record in damaged if record.status == KEPT]
    tar = tar_path(out, (lost or damaged)[0].slide_id)
    if lost:
        raise UserError(
            f"{tar} is damaged, and its slide {lost[0].slide} is gone; put the slide back, "
            f"or remove {tar.with_suffix('.json')} to go on without its patches"
        )
    are = f"and {len(damaged) - 1} more are" if len(damaged) > 1 else "is"
    raise DamagedTarError(
        f"{tar} {are} damaged; run the harvest again, it makes the patches of such slides again",
        {record.slide_id for record in damaged},
    )


def _write_shards(
    out: Path, records: Sequence[Record], shard_size: int, seed: int, old: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write the shards of these slides, numbered on from `old`; return their entries in the index."""
    samples = Samples.of([tar_path(out, record.slide_id) for record in records])
    # The first packing is shuffled by the seed alone; additions must not repeat its order.
    order = np.random.default_rng((seed, len(old)) if old else seed).permutation(len(samples))
    parts = np.array_split(order, math.ceil(len(samples) / shard_size))
    names = [shard_name(number) for number in range(len(old), len(old) + len(parts))]
    write_journal(out, names)
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
    """Return mean and standard deviation of red, green and blue in 0..1 over all pixels of all patches."""
    pixels = sum(record.kept for record in records) * patch_size**2
    sums = np.sum([record.pixel_sums[0] for record in records], axis=0) / pixels
    squares = np.sum([record.pixel_sums[1] for record in records], axis=0) / pixels
    std = np.sqrt(squares - sums**2)
    return [round(float(v) / 255, 6) for v in sums], [round(float(v) / 255, 6) for v in std]
