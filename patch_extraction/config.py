"""What a harvest is asked to do: the command line, the checks on it, and the settings that decide pixels."""

import fnmatch
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.cli import as_plain, check_range
from shared.errors import UserError
from shared.files import printable
from shared.jobs.partition import Part
from shared.wsi.resampling import resampler
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.slide import Reader

FORMAT = 7  # of the slide tars; raised when the same settings would give other patches
# Coarser than this, nuclei are specks that no counter tells apart (cells are counted at 1 um/px).
COARSEST_PATCH_MPP = 1.0


@dataclass(frozen=True)
class HarvestConfig:
    """Harvest patches with enough cells from whole-slide images into WebDataset shards.

    With `--check DIR` instead, verify that a folder of shards is whole.
    """

    wsi_dir: Path
    """Folder of slides, searched with its sub-folders."""
    out: Path = Path("shards")
    """Folder for the shards, the pictures and the summary."""
    slides: Path | None = None
    """CSV of the slides to harvest, in this order: column `slide` (path below the folder, file name, or that
    without its ending) and, if wanted, `slide_mpp` and `biomarker`, which go before the options of that name."""
    biomarker: str | None = None
    """Stain or label of all slides; by default each slide's is the name of the folder it lies in."""
    slide_mpp: tuple[str, ...] = ()
    """um/px of level 0, where a slide does not state it or is wrong: `0.25` for all slides, `NAME=0.25` for
    those whose name or path matches (`*` allowed); the last that matches counts."""
    trust_objective: bool = False
    """Where no resolution is stated, take it from the objective's power (40x: 0.25)."""
    patch_mpp: float = 0.25
    """um/px of the patches: the 40x of the paper."""
    patch_size: int = 512
    """Side of a patch in px."""
    allow_upsampling: bool = False
    """Enlarge slides coarser than 1.25 x `patch-mpp`, too."""
    min_cells: int = 30
    """A patch with fewer cells is left out. Source: the paper, where it describes the pre-training set."""
    max_patches: int = 500
    """At most so many patches a slide, spread over its tissue. Source: the same."""
    min_tissue: float = 0.5
    """Least share of a patch that the tissue mask covers."""
    counter: str = "haematoxylin"
    """Who counts cells: `haematoxylin`; `detector`, the one that comes with this package; or MODULE:FUNCTION, a
    Python function of yours that takes an RGB image (uint8, height x width x 3) and its um/px, and returns the
    cells' centres (N x 2, x and y in px)."""
    detector: Path | None = None
    """Let this detector count, a file that `python -m finetune` wrote."""
    screen: bool = True
    """Leave out places where the classical counter sees far too few cells at about 1 um/px, before they are
    counted; switch it off for a counter that finds what the classical one does not see. The first 16 places are
    counted in any case; if it is the classical counter that counts and they show that next to none would be left
    out, so are all others."""
    seed: int = 0
    """Decides which patches are kept where there are too many, and the order of the shards."""
    workers: int = 0
    """Slides harvested at a time, each in a process; 0: one for each core. Does not change the result."""
    slide_minutes: float = 120.0
    """A slide that takes longer is given up and named; those of the paper take seconds to a few minutes."""
    shard_size: int = 4000
    """Patches in a shard, about."""
    add_shards: bool = False
    """Where slides were added since the last time: leave the shards alone and write further ones with the new
    slides' patches, instead of shuffling all patches anew."""
    reader: Reader = "auto"
    """Who decodes slides: `auto` reads plain tiles of JPEG directly, several times faster, and leaves all else to
    OpenSlide; `openslide` leaves everything to it. The pixels are the same."""
    overwrite: bool = False
    """Redo slides that were harvested into `out` with other settings, instead of refusing."""
    dry_run: bool = False
    """Only say what would be done, slide by slide; nothing is written."""
    part: str | None = None
    """I/N, as 3/16: harvest only this part of the slides, other tasks harvesting the others, and pack nothing."""
    pack: bool = False
    """Harvest nothing, only pack what all the parts have harvested."""

    def processes(self) -> int:
        """The number of worker processes."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class SlideEntry:
    """One slide to harvest."""

    path: Path
    name: str  # path below --wsi-dir, with "/"
    slide_id: str
    biomarker: str
    slide_mpp: float | None  # override
    settings: Mapping[str, Any] = field(repr=False)  # what decides its patches, to tell other runs' apart
    original: "SlideEntry | None" = None  # the slide harvested instead of this one, if the files prove equal


def check(config: HarvestConfig) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: names the option and what it takes.
    """
    low, high = MPP_RANGE[0], COARSEST_PATCH_MPP
    limits = {
        "patch-mpp": (config.patch_mpp, low, high),
        "patch-size": (config.patch_size, 32, 8192),
        "min-cells": (config.min_cells, 0, 10**6),
        "max-patches": (config.max_patches, 1, 10**9),
        "min-tissue": (config.min_tissue, 0, 1),
        "seed": (config.seed, 0, 2**32 - 1),
        "workers": (config.workers, 0, 1024),
        "slide-minutes": (config.slide_minutes, 0.01, 10**6),
        "shard-size": (config.shard_size, 1, 10**9),
    }
    for name, (value, least, most) in limits.items():
        check_range(name, value, least, most)
    for word in config.slide_mpp:
        _override(word)
    if config.part is not None:
        Part.of_text(config.part)
        if config.pack:
            raise UserError("--part and --pack exclude each other; the parts come first, then one --pack")
    paths = {"wsi-dir": config.wsi_dir, "out": config.out, "slides": config.slides, "detector": config.detector}
    for name, path in paths.items():
        if printable(str(path)) != str(path):
            raise UserError(f"--{name} {printable(str(path))} is not UTF-8; rename it, or give a link to it")


def overrides(config: HarvestConfig, names: Sequence[str]) -> dict[str, float]:
    """um/px of level 0 that the user gave, by the slide's path below --wsi-dir.

    Raises:
        UserError: a word of --slide-mpp fits none of the slides.
    """
    found = {}
    for word in config.slide_mpp:
        pattern, mpp = _override(word)
        fitting = [name for name in names if _fits(name, pattern)]
        if not fitting:
            raise UserError(f"--slide-mpp {word} fits no slide in {config.wsi_dir}; check the name")
        found.update(dict.fromkeys(fitting, mpp))
    return found


def common_settings(config: HarvestConfig, counter: str) -> dict[str, Any]:
    """The settings that decide the patches of every slide, and what they are read with where that makes others."""
    names = ("trust_objective", "patch_mpp", "patch_size", "allow_upsampling", "min_cells", "max_patches")
    plain = as_plain(config)
    chosen = {name: plain[name] for name in (*names, "min_tissue", "screen", "seed")}
    return {"format": FORMAT, **chosen, "counter": counter, "resampler": resampler()}


def pixel_settings(config: HarvestConfig, counter: str, biomarker: str, slide_mpp: float | None) -> dict[str, Any]:
    """The settings that decide one slide's patches and what their files say."""
    return {**common_settings(config, counter), "biomarker": biomarker, "slide_mpp": slide_mpp}


def _fits(name: str, pattern: str) -> bool:
    """Whether a name or path is meant: as it is written, brackets and all, or by wildcards."""
    name, pattern = (unicodedata.normalize("NFC", text) for text in (name, pattern))
    candidates = (name, name.rsplit("/", 1)[-1])
    return pattern in candidates or any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates)


def _override(word: str) -> tuple[str, float]:
    """A word of --slide-mpp as pattern and um/px."""
    pattern, _, number = word.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
        raise UserError(
            f"--slide-mpp {word} is not a resolution; give um/px from {MPP_RANGE[0]} to {MPP_RANGE[1]}, "
            "as 0.25 or NAME=0.25"
        )
    return pattern or "*", value
