"""Shards that a run reads: opened, counted where they are foreign, and recognised when it resumes.

`index.json` beside the shards, written by `patch_extraction`, lists the shards, their numbers of samples and
SHA-256, and the channel mean and standard deviation over the patches. The samples of foreign shards, which have no
index, are counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_json
from shared.shards.format import HARVEST, INDEX, JOURNAL, Shard, ShardIndex, open_index
from shared.shards.tar_reader import check_end, count_images, damaged, sha256
from shared.training.run_folder import progress
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Of foreign shards: number of samples and bytes of the file, by its name.
Counts = dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class ShardSet(ShardIndex):
    """Shards of a folder, with the content of their index."""

    folder: Path
    indexed: bool
    """False for foreign shards without `index.json`: counted here, normalised with ImageNet's values."""

    @property
    def counts(self) -> list[int]:
        """Images of each shard."""
        return [shard.samples for shard in self.shards]

    @property
    def mean_bytes(self) -> int:
        """Bytes of the shards for each image."""
        return sum(self.path(n).stat().st_size for n in range(len(self.shards))) // max(self.samples, 1)

    def path(self, number: int) -> Path:
        """Path of the shard of this number."""
        return self.folder / self.shards[number].name


def open_shards(folder: Path, counts: Counts | None = None) -> ShardSet:
    """Open the shards listed in `folder/index.json`; without an index, every tar in the folder.

    Args:
        folder: The shards.
        counts: What `count_foreign` found; None: foreign shards are counted now.

    Raises:
        UserError: no folder, no shards, shards being packed, an index that cannot be used, a shard missing or
            cut short.
    """
    _require_folder(folder)
    if (folder / INDEX).exists():
        shard_set = ShardSet(folder=folder, indexed=True, **vars(open_index(folder)))
    else:
        shard_set = _foreign(folder, count_foreign(folder) if counts is None else counts)
    for number in range(len(shard_set.shards)):
        check_end(shard_set.path(number))
    return shard_set


def count_foreign(folder: Path, memory: Path | None = None) -> Counts:
    """Count the samples of foreign shards, from the headers of their members; {} for shards with an index.

    Args:
        folder: The shards.
        memory: File of `remember`: a shard of the same name and size is not counted again.

    Raises:
        UserError: no folder, no shards, or a shard is damaged.
    """
    _require_folder(folder)
    if (folder / INDEX).exists():
        return {}
    before = _remembered_counts(memory) if memory is not None else {}
    counts: Counts = {}
    skipped = Counter[str]()
    for path in _tars(folder):
        size = path.stat().st_size
        if before.get(path.name, (0, -1))[1] == size:
            counts[path.name] = before[path.name]
            continue
        contents = count_images(path)
        counts[path.name] = contents.samples, size
        skipped += contents.skipped
    if skipped:
        listed = ", ".join(f"{count:,} {suffix}" for suffix, count in skipped.most_common(5))
        print(f"note: the shards in {folder} hold members that are not read: {listed}")
    if others := [name for names in _passed_over(folder) for name in names]:
        print(f"note: only the .tar files directly in {folder} are read, not {', '.join(others[:4])}")
    return counts


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
    """Write down which shards a run reads, so that a change is noticed and foreign ones are counted once."""
    sizes = (
        {} if shard_set.indexed else {s.name: (shard_set.folder / s.name).stat().st_size for s in shard_set.shards}
    )
    write_json(path, {"folder": str(shard_set.folder), "bytes": sizes, **_contents(shard_set)})


def same_as_remembered(shard_set: ShardSet, path: Path) -> bool:
    """Return True if the shards are those of `remember`, in whatever folder.

    Raises:
        UserError: what was written down is damaged.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return all(before[name] == value for name, value in _contents(shard_set).items())
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is damaged; give another run folder with --run-dir") from error


def fingerprint(shard_set: ShardSet) -> str:
    """Hash of the shards' contents, independent of the folder."""
    return hashlib.sha256(json.dumps(_contents(shard_set)).encode()).hexdigest()


def _foreign(folder: Path, counts: Counts) -> ShardSet:
    """Open the tars of a folder without an index; one that differs from the counted one gets no samples."""
    sized = [(path.name, path.stat().st_size) for path in _tars(folder)]
    counted = {name: samples for name, (samples, size) in counts.items() if (name, size) in sized}
    shards = tuple(Shard(name, counted.get(name, 0), "") for name, _ in sized)
    if not sum(shard.samples for shard in shards):
        raise UserError(
            f"the tar files in {folder} hold no .jpg or .png images; convert them, or make shards with: {HARVEST}"
        )
    return ShardSet(shards=shards, mean=IMAGENET_MEAN, std=IMAGENET_STD, settings={}, folder=folder, indexed=False)


def _require_folder(folder: Path) -> None:
    """Refuse what is no folder of complete shards."""
    if folder.is_file():
        raise UserError(f"--shards {folder} is a file; give the folder that holds the shards")
    if not folder.is_dir():
        pattern = "; a pattern like {0..9}.tar is not expanded, give the folder" if "{" in str(folder) else ""
        raise UserError(
            f"there is no folder of shards {folder}{pattern}; make one with: {HARVEST} --wsi-dir SLIDES"
        )
    if (folder / JOURNAL).exists() and not (folder / INDEX).exists():
        raise UserError(
            f"{folder} is still being packed, or its packing was interrupted; wait, or run {HARVEST} again"
        )


def _tars(folder: Path) -> list[Path]:
    """List the foreign shards of a folder, by name.

    Raises:
        UserError: there are none; names compressed ones and those in subfolders.
    """
    paths = sorted(folder.glob("*.tar"))
    compressed, nested = _passed_over(folder)
    if not paths and "slides" in nested:
        raise UserError(
            f"{folder} holds harvested slides, but no shards were packed from them; run {HARVEST} again"
        )
    if not paths and compressed:
        raise UserError(f"the shards in {folder} are compressed ({compressed[0]}); unpack them to .tar files")
    if not paths and nested:
        raise UserError(
            f"the shards in {folder} lie in its subfolders ({', '.join(nested[:3])}); give one of them"
        )
    if not paths:
        raise UserError(f"there are no shards in {folder}; make them with: {HARVEST} --wsi-dir SLIDES")
    return paths


def _passed_over(folder: Path) -> tuple[list[str], list[str]]:
    """Names of compressed shards, and of subfolders with shards."""
    compressed = sorted(path.name for end in COMPRESSED for path in folder.glob(f"*{end}"))
    return compressed, sorted({path.parent.name for path in folder.glob("*/*.tar")})


def _remembered_counts(memory: Path) -> Counts:
    """Read numbers of samples and bytes of the foreign shards that a run began with; {} if it is unknown."""
    try:
        before = json.loads(memory.read_text(encoding="utf-8"))
        sizes = before["bytes"]
        return {shard["name"]: (int(shard["samples"]), int(sizes[shard["name"]])) for shard in before["shards"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _contents(shard_set: ShardSet) -> dict[str, Any]:
    return {
        "shards": [vars(shard) for shard in shard_set.shards],
        "samples": shard_set.samples,
        "mean": list(shard_set.mean),
        "std": list(shard_set.std),
        "settings": shard_set.settings,
    }
