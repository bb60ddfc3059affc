"""What a folder of shards holds: its index and its check.

`index.json` beside the shards, written by `patch_extraction`, says which shards count, how many samples each has,
its SHA-256 and the channel mean and standard deviation over the patches.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_json
from shared.shards.format import INDEX, JOURNAL
from shared.shards.tar_reader import HARVEST, check_end, count_images, damaged, sha256
from shared.training.run_folder import progress
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    """File name inside the folder."""
    samples: int
    """How many images it holds."""
    sha256: str
    """Of the whole file; empty for a foreign shard, whose images were counted instead."""


@dataclass(frozen=True)
class ShardSet:
    """The shards of a folder, with what their index says about them."""

    folder: Path
    shards: tuple[Shard, ...]
    mean: tuple[float, ...]
    """Channel means (RGB, 0..1) over the patches."""
    std: tuple[float, ...]
    settings: dict[str, Any]
    """How the patches were harvested."""
    indexed: bool
    """False for foreign shards without `index.json`: counted here, normalised with ImageNet's values."""
    slides: int = 0
    """How many slides the patches are from; 0: unknown."""
    biomarkers: Mapping[str, dict[str, int]] = field(default_factory=dict)
    """`patches` and `slides` of each biomarker, as far as known."""

    @property
    def samples(self) -> int:
        """How many images there are in all."""
        return sum(shard.samples for shard in self.shards)

    @property
    def counts(self) -> list[int]:
        """Images of each shard."""
        return [shard.samples for shard in self.shards]

    def path(self, number: int) -> Path:
        """Where the shard of this number lies."""
        return self.folder / self.shards[number].name


def open_shards(folder: Path) -> ShardSet:
    """The shards listed in `folder/index.json`; without an index every tar in the folder, counted.

    Raises:
        UserError: no folder, no shards, shards being packed, an index that cannot be used, a shard missing or
            cut short.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of shards {folder}; make one with: {HARVEST} --wsi-dir SLIDES")
    index = folder / INDEX
    if (folder / JOURNAL).exists() and not index.exists():
        raise UserError(
            f"{folder} is still being packed, or its packing was interrupted; wait, or run {HARVEST} again"
        )
    shard_set = _read_index(index) if index.exists() else _count(folder)
    for number in range(len(shard_set.shards)):
        check_end(shard_set.path(number))
    return shard_set


def check_sums(
    shard_set: ShardSet, numbers: range, stopped: Callable[[], bool] = lambda: False, quiet: bool = False
) -> None:
    """Compare the SHA-256 of some of the shards with the index; ends early, between two, once `stopped`.

    Raises:
        UserError: a shard is not the one that was indexed.
    """
    with progress(len(numbers), "shard", description="checking", hidden=quiet) as bar:
        for number in numbers:
            if stopped():
                return
            path, wanted = shard_set.path(number), shard_set.shards[number].sha256
            if wanted and sha256(path) != wanted:
                raise damaged(path, "its SHA-256 is not the one in index.json")
            bar.update()


def remember(shard_set: ShardSet, path: Path) -> None:
    """Write down which shards a run reads, so that it can tell when they change under it."""
    write_json(path, {"folder": str(shard_set.folder), **_contents(shard_set)})


def same_as_remembered(shard_set: ShardSet, path: Path) -> bool:
    """Whether the shards are those of `remember`, wherever the folder lies now.

    Raises:
        UserError: what was written down is damaged.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return all(before[name] == value for name, value in _contents(shard_set).items())
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is damaged; give another run folder with --run-dir") from error


def fingerprint(shard_set: ShardSet) -> str:
    """What differs if the shards do, wherever the folder lies."""
    return hashlib.sha256(json.dumps(_contents(shard_set)).encode()).hexdigest()


def _read_index(index: Path) -> ShardSet:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = tuple(_entry(entry) for entry in content["shards"])
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("it lists a shard twice")
        mean, std = (_of_channels(content, name) for name in ("mean", "std"))
        if not all(std):
            raise ValueError("a standard deviation is 0")
        slides = int(content.get("slides", 0))
        settings = dict(content.get("settings", {}))
        biomarkers = {
            str(name): {part: int(counts[part]) for part in ("patches", "slides")}
            for name, counts in dict(content.get("biomarkers", {})).items()
        }
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise UserError(
            f"{index} is not an index of shards ({type(error).__name__}: {error}); "
            f"remove it and run {HARVEST} again"
        ) from error
    if not sum(shard.samples for shard in shards):
        raise UserError(f"{index} lists no patches; harvest some with: {HARVEST} --wsi-dir SLIDES")
    return ShardSet(index.parent, shards, mean, std, settings, True, slides, biomarkers)


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
    """The mean or the standard deviation of red, green and blue."""
    values = tuple(map(float, content[name]))
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"{name} is not three numbers between 0 and 1")
    return values


def _count(folder: Path) -> ShardSet:
    """Foreign shards: every tar of the folder, its images counted."""
    paths = sorted(folder.glob("*.tar"))
    if not paths and any(folder.glob("slides/*.tar")):
        raise UserError(
            f"{folder} holds harvested slides, but no shards were packed from them; run {HARVEST} again"
        )
    if not paths:
        raise UserError(f"there are no shards in {folder}; make them with: {HARVEST} --wsi-dir SLIDES")
    shards = tuple(Shard(path.name, count_images(path), "") for path in paths)
    if not sum(shard.samples for shard in shards):
        raise UserError(f"the tar files in {folder} hold no .jpg images; make shards with: {HARVEST}")
    return ShardSet(folder, shards, IMAGENET_MEAN, IMAGENET_STD, {}, indexed=False)


def _contents(shard_set: ShardSet) -> dict[str, Any]:
    return {
        "shards": [vars(shard) for shard in shard_set.shards],
        "samples": shard_set.samples,
        "mean": list(shard_set.mean),
        "std": list(shard_set.std),
        "settings": shard_set.settings,
    }
