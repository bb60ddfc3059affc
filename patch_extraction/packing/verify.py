"""`--check DIR`: verify a folder of shards and name its faults."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.slide_store.file_names import record_path, tar_path
from patch_extraction.slide_store.slide_record import read_record
from patch_extraction.slide_store.slide_tar import members, read_at
from shared.errors import UserError
from shared.files import sha256_of
from shared.shards.format import INDEX, JOURNAL, SAMPLE_FIELDS, SHARD, own_shards, read_index
from shared.training.run_folder import progress

MAX_NAMED = 50  # faults printed one by one


def check_shards(out: Path) -> None:
    """Read every shard and slide tar, and print that all is well.

    Raises:
        UserError: there are faults, which are printed.
    """
    if not out.is_dir():
        raise UserError(f"there is no folder {out}; check the path")
    index = read_index(out)
    if index is None:
        raise UserError(f"{out} holds no {INDEX} of a harvest; harvest into it, or pack it with --pack")
    try:
        faults = list(_faults(out, index))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{out / INDEX} was changed ({type(error).__name__}: {error}); "
            "remove it and start the same harvest again"
        ) from error
    for fault in faults[:MAX_NAMED]:
        print(f"wrong: {fault}")
    if len(faults) > MAX_NAMED:
        print(f"... and {len(faults) - MAX_NAMED} more")
    if faults:
        count = "one thing is" if len(faults) == 1 else f"{len(faults)} things are"
        raise UserError(
            f"{count} wrong in {out}; remove the files named as changed and start the same harvest again, "
            "it makes again what is missing"
        )
    print(
        f"{out} is whole: {index['samples']} patches of {index['slides']} slides in {len(index['shards'])} shards"
    )


def _faults(out: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for every fault."""
    if (out / JOURNAL).exists():
        yield f"{out / JOURNAL}: the last packing was interrupted"
    listed = {shard["name"] for shard in index["shards"]}
    for name in sorted(path.name for path in out.glob("shard-*.tar") if SHARD.fullmatch(path.name)):
        if name not in listed:
            whose = "of an interrupted packing" if name in own_shards(out) else "foreign"
            yield f"{out / name} is not listed in {INDEX}: {whose}"
    keys: list[np.ndarray] = []  # hashes of the samples' keys
    with progress(len(index["shards"]), "shard", description="checking") as bar:
        for shard in index["shards"]:
            yield from _shard_faults(out / shard["name"], shard, keys)
            bar.update()
    yield from _tar_faults(out, index)
    yield from _count_faults(index, keys)


def _shard_faults(path: Path, shard: Mapping[str, Any], keys: list[np.ndarray]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is gone"
    elif path.stat().st_size != shard["bytes"]:
        yield f"{path} has {path.stat().st_size} bytes instead of {shard['bytes']}"
    elif sha256_of(path) != shard["sha256"]:
        yield f"{path} was changed: its SHA-256 is not that of {INDEX}"
    else:
        yield from _sample_faults(path, shard["samples"], keys)


def _sample_faults(path: Path, samples: int, keys: list[np.ndarray]) -> Iterator[str]:
    """Yield samples that are not an image with its JSON."""
    found = []
    try:
        with path.open("rb") as file:
            contents = members(file)
            pairs = list(zip(contents[0::2], contents[1::2], strict=False))
            for (picture, _), (text, span) in pairs:
                key = picture.removesuffix(".jpg")
                found.append(hash(key))
                fields = json.loads(read_at(file, span))
                if text != f"{key}.json" or "." in key or not fields.keys() >= SAMPLE_FIELDS:
                    yield f"{path}: {picture} and {text} are not a sample"
    except (tarfile.TarError, ValueError, AttributeError) as error:
        yield f"{path} is not a shard ({error})"
    if len(found) != samples:
        yield f"{path} holds {len(found)} samples instead of {samples}"
    keys.append(np.array(found, np.int64))


def _tar_faults(out: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Yield slide tars that the next packing could not use; nothing if all were removed to save space."""
    if not any(tar_path(out, slide_id).exists() for slide_id in index["tars"]):
        return
    with progress(len(index["tars"]), "slide", description="checking") as bar:
        for slide_id, sha256 in index["tars"].items():
            tar = tar_path(out, slide_id)
            record = read_record(record_path(out, slide_id))
            if record is None or record.sha256 != sha256:
                yield f"{record_path(out, slide_id)} is lost, damaged, or newer than the shards"
            elif sha256_of(tar) != sha256:
                yield f"{tar} is gone or was changed"
            bar.update()


def _count_faults(index: Mapping[str, Any], keys: list[np.ndarray]) -> Iterator[str]:
    found = np.concatenate([np.zeros(0, np.int64), *keys])
    if twice := len(found) - len(np.unique(found)):
        yield f"{twice} patches occur more than once"
    listed = sum(shard["samples"] for shard in index["shards"])
    if listed != index["samples"]:
        yield f"{INDEX} was changed: it counts {index['samples']} patches, its shards {listed}"
    biomarkers = index["biomarkers"].values()
    if len({index["slides"], len(index["tars"]), sum(counts["slides"] for counts in biomarkers)}) > 1:
        yield f"{INDEX} was changed: it counts {index['slides']} slides, but names others"
    if (patches := sum(counts["patches"] for counts in biomarkers)) != index["samples"]:
        yield f"{INDEX} was changed: it counts {index['samples']} patches, its biomarkers {patches}"
