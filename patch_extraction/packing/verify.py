"""`python -m patch_extraction --check DIR`: is a folder of shards whole, and if not, what is wrong with it?"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.packing.pack import INDEX, JOURNAL, SHARD, own_shards, read_index, sha256_of
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import read_record
from patch_extraction.slide_store.slide_tar import members, read_at
from shared.errors import UserError
from shared.training.run_folder import progress

FIELDS = {"slide", "biomarker", "x", "y", "width", "height", "mpp", "slide_mpp", "mpp_source", "level", "factor"}
MOST_NAMED = 50  # faults printed one by one


@dataclass(frozen=True)
class CheckConfig:
    """Verify a folder of shards: nothing lost, nothing doubled, every byte as the index says."""

    check: Path
    """The folder with `index.json`."""


def check_shards(out: Path) -> None:
    """Read every shard and every slide's tar; say that all is well.

    Raises:
        UserError: it is not; what is wrong was printed.
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
    for fault in faults[:MOST_NAMED]:
        print(f"wrong: {fault}")
    if len(faults) > MOST_NAMED:
        print(f"... and {len(faults) - MOST_NAMED} more")
    if faults:
        count = "one thing is" if len(faults) == 1 else f"{len(faults)} things are"
        raise UserError(
            f"{count} wrong in {out}; remove the files named as changed and start the same harvest again, "
            "it makes what is missing anew"
        )
    print(
        f"{out} is whole: {index['samples']} patches of {index['slides']} slides in {len(index['shards'])} shards"
    )


def _faults(out: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for everything that is wrong."""
    if (out / JOURNAL).exists():
        yield f"{out / JOURNAL}: the last packing did not come to its end"
    listed = {shard["name"] for shard in index["shards"]}
    for name in sorted(path.name for path in out.glob("shard-*.tar") if SHARD.fullmatch(path.name)):
        if name not in listed:
            whose = "of an interrupted packing" if name in own_shards(out) else "of somebody else"
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
    """Samples that are no pair of a picture and what is said of it."""
    found = []
    try:
        with path.open("rb") as file:
            contents = members(file)
            pairs = list(zip(contents[0::2], contents[1::2], strict=False))
            for (picture, _), (text, span) in pairs:
                key = picture.removesuffix(".jpg")
                found.append(hash(key))
                said = json.loads(read_at(file, span))
                if text != f"{key}.json" or "." in key or not said.keys() >= FIELDS:
                    yield f"{path}: {picture} and {text} are no sample"
    except (tarfile.TarError, ValueError, AttributeError) as error:
        yield f"{path} is no shard ({error})"
    if len(found) != samples:
        yield f"{path} holds {len(found)} samples instead of {samples}"
    keys.append(np.array(found, np.int64))


def _tar_faults(out: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Slides' tars that the next packing could not use; nothing if all were removed to make room."""
    if not any(tar_path(out, slide_id).exists() for slide_id in index["tars"]):
        return
    with progress(len(index["tars"]), "slide", description="checking") as bar:
        for slide_id, sha256 in index["tars"].items():
            tar = tar_path(out, slide_id)
            record = read_record(tar.with_suffix(".json"))
            if record is None or record.sha256 != sha256:
                yield f"{tar.with_suffix('.json')} is lost, damaged, or newer than the shards"
            elif sha256_of(tar) != sha256:
                yield f"{tar} is gone or was changed"
            bar.update()


def _count_faults(index: Mapping[str, Any], keys: list[np.ndarray]) -> Iterator[str]:
    found = np.concatenate([np.zeros(0, np.int64), *keys])
    if twice := len(found) - len(np.unique(found)):
        yield f"{twice} patches are there more than once"
    listed = sum(shard["samples"] for shard in index["shards"])
    if listed != index["samples"]:
        yield f"{INDEX} was changed: it counts {index['samples']} patches, its shards {listed}"
    biomarkers = index["biomarkers"].values()
    if len({index["slides"], len(index["tars"]), sum(counts["slides"] for counts in biomarkers)}) > 1:
        yield f"{INDEX} was changed: it counts {index['slides']} slides, but names others"
    if (patches := sum(counts["patches"] for counts in biomarkers)) != index["samples"]:
        yield f"{INDEX} was changed: it counts {index['samples']} patches, its biomarkers {patches}"
