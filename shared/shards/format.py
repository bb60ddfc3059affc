"""Index of a folder of shards and fields of its samples: `patch_extraction` writes, `ssl_pretrain` reads them.

`shard-000000.tar`, ... are WebDataset shards of samples `KEY.jpg` and `KEY.json`. `index.json` is removed before
the first shard is written and written after the last one, so that a folder with an index is complete; in between,
`.packing.json`, the journal, lists the shards of the harvest. Where shards are only added, the old index stays
until it is replaced. The index holds the shards (samples, bytes, SHA-256), the SHA-256 of the slides' tars packed
into them, the settings, and mean and standard deviation of the pixels."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_json

HARVEST = "python -m patch_extraction"
FORMAT = "dpa-p2pnet shards 1"
INDEX, JOURNAL = "index.json", ".packing.json"
SHARD = re.compile(r"shard-\d{6}\.tar")
SHARD_FIELDS = {"name", "samples", "bytes", "sha256"}  # of a shard in the index
# Fields of KEY.json in every version: slide and stain; the patch in px of level 0; um/px of its pixels and of
# level 0 with the source; pyramid level and its px per px of the patch; number of cells. Newer: `columns`
# of the slide list, share of `tissue`, sharpness (`focus`), and `points`, centres of cells in px of the patch.
SAMPLE_FIELDS = {"slide", "biomarker", "x", "y", "width", "height", "mpp", "slide_mpp", "mpp_source"}
SAMPLE_FIELDS |= {"level", "factor", "cells"}


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    """File name inside the folder."""
    samples: int
    """Number of images."""
    sha256: str
    """SHA-256 of the file; empty for a foreign shard."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Content of the index, as far as a training reads it."""

    shards: tuple[Shard, ...]
    mean: tuple[float, ...]
    """Channel means (RGB, 0..1) over the patches."""
    std: tuple[float, ...]
    settings: dict[str, Any]
    """Settings of the harvest."""
    slides: int = 0
    """Number of slides; 0: unknown."""
    biomarkers: Mapping[str, dict[str, int]] = field(default_factory=dict)
    """`patches` and `slides` of each biomarker, as far as known."""

    @property
    def samples(self) -> int:
        """Number of images."""
        return sum(shard.samples for shard in self.shards)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def sample_key(slide_id: str, x: int, y: int) -> str:
    """Return the key of a patch; without a dot, at which WebDataset splits names."""
    return f"{slide_id}_{x}_{y}"


def read_index(folder: Path) -> dict[str, Any] | None:
    """Read the index of a folder; None if it is absent, damaged or of another format."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = index["format"] == FORMAT and all(shard.keys() >= SHARD_FIELDS for shard in index["shards"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return index if whole else None


def open_index(folder: Path) -> ShardIndex:
    """Read the index of a folder and check all that a training reads of it.

    Raises:
        UserError: it is damaged, no index of shards, or lists no patches.
    """
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        index = ShardIndex(
            shards=tuple(_entry(entry) for entry in content["shards"]),
            mean=_of_channels(content, "mean"),
            std=_of_channels(content, "std"),
            settings=dict(content.get("settings", {})),
            slides=int(content.get("slides", 0)),
            biomarkers={
                str(name): {part: int(counts[part]) for part in ("patches", "slides")}
                for name, counts in dict(content.get("biomarkers", {})).items()
            },
        )
        if len({shard.name for shard in index.shards}) < len(index.shards):
            raise ValueError("it lists a shard twice")
        if not all(index.std):
            raise ValueError("a standard deviation is 0")
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise UserError(
            f"{path} is not an index of shards ({type(error).__name__}: {error}); "
            f"remove it and run {HARVEST} again"
        ) from error
    if not index.samples:
        raise UserError(f"{path} lists no patches; harvest some with: {HARVEST} --wsi-dir SLIDES")
    return index


def shard_names(index: Mapping[str, Any]) -> list[str]:
    """Return the file names of the shards of an index."""
    return [shard["name"] for shard in index["shards"]]


def own_shards(folder: Path) -> set[str]:
    """Return the names of the shards that a harvest wrote or started to write; all others are foreign.

    Raises:
        UserError: the journal is damaged.
    """
    index = read_index(folder)
    names = set() if index is None else set(shard_names(index))
    if (folder / JOURNAL).exists():
        try:
            names |= set(json.loads((folder / JOURNAL).read_text(encoding="utf-8"))["shards"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / JOURNAL} is damaged; remove it and run the command again") from error
    return {name for name in names if SHARD.fullmatch(name)}


def write_journal(folder: Path, names: Iterable[str]) -> None:
    """Record the shards of the index and `names`, which are about to be written, as those of the harvest."""
    write_json(folder / JOURNAL, {"shards": sorted(own_shards(folder) | set(names))})


def _entry(entry: Any) -> Shard:
    """One shard of the index."""
    name, samples, sha256 = entry["name"], entry["samples"], entry["sha256"]
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file beside it")
    if type(samples) is not int or samples < 0:
        raise ValueError(f"{samples!r} is not a number of samples")
    if not isinstance(sha256, str):
        raise ValueError(f"{sha256!r} is not a SHA-256")
    return Shard(name, samples, sha256)


def _of_channels(content: Any, name: str) -> tuple[float, ...]:
    """Return the mean or the standard deviation of red, green and blue."""
    values = tuple(map(float, content[name]))
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"{name} is not three numbers between 0 and 1")
    return values
