"""Format of a folder of shards, which `patch_extraction` writes and `ssl_pretrain` reads.

`shard-000000.tar`, ... are WebDataset shards of samples `KEY.jpg` and `KEY.json`. `index.json` is removed before
the first shard is written and written after the last one, so that a folder with an index is complete; in between,
`.packing.json`, the journal, lists the shards of the harvest. Where shards are only added, the old index stays
until it is replaced. The index holds the shards (samples, bytes, SHA-256), the SHA-256 of the slides' tars packed
into them, the settings, and mean and standard deviation of the pixels."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_json

FORMAT = "dpa-p2pnet shards 1"
INDEX, JOURNAL = "index.json", ".packing.json"
SHARD = re.compile(r"shard-\d{6}\.tar")
SHARD_FIELDS = {"name", "samples", "bytes", "sha256"}  # of a shard in the index
# Fields of KEY.json: slide, stain, and further columns of the slide list; the patch in px of level 0; um/px of its
# pixels and of level 0 with the source; pyramid level and its px per px of the patch; share of tissue; sharpness;
# number of cells, and their centres in px of the patch.
SAMPLE_FIELDS = {"slide", "biomarker", "x", "y", "width", "height", "mpp", "slide_mpp", "mpp_source"}
SAMPLE_FIELDS |= {"columns", "level", "factor", "tissue", "focus", "cells", "points"}


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
