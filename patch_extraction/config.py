"""Configuration of a harvest: options, their ranges, and the settings that decide the pixels of patches."""

import fnmatch
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from shared import cli
from shared.cli import Range, as_plain, require_paths
from shared.errors import UserError
from shared.files import printable
from shared.jobs.partition import Part
from shared.weights.shipped import NUCLEI
from shared.wsi.resampling import resampler
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.slide import Reader

FORMAT = 8  # of slide tars; incremented when the same settings give other patches
# Coarser than this, nuclei are specks that no counter separates (cells are counted at 1 um/px).
MAX_PATCH_MPP = 1.0


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Slides to harvest."""

    wsi_dir: Path = Path("slides")
    """Folder of slides, searched with its subfolders."""
    slides: Path | None = None
    """CSV of the slides to harvest, in this order. Column `slide`: path below the folder, file name, or file name
    without ending. Optional columns `slide_mpp` and `biomarker` override the options of these names; further ones
    (patient, cohort, scanner, ...) go into the JSON of every patch."""
    biomarker: str | None = None
    """Stain or label of all slides; default: the name of each slide's folder."""
    slide_mpp: tuple[str, ...] = ()
    """um/px of level 0, where a slide does not state it or states it wrongly: `0.25` for all slides, `NAME=0.25`
    for slides whose name or path matches (`*` allowed). The last match counts."""
    trust_objective: bool = False
    """Derive a resolution that is not stated from the objective's power (40x: 0.25)."""
    reader: Reader = "auto"
    """`auto` decodes plain JPEG tiles directly, several times faster, and everything else by OpenSlide;
    `openslide` decodes everything by OpenSlide. The pixels are the same."""


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Patches to keep."""

    patch_mpp: Annotated[float, Range(MPP_RANGE[0], MAX_PATCH_MPP)] = 0.25
    """um/px of the patches (the paper's 40x: 0.25)."""
    patch_size: Annotated[int, Range(32, 8192)] = 512
    """Width and height of a patch in px."""
    allow_upsampling: bool = False
    """Enlarge slides coarser than 1.25 x `--patch-mpp`."""
    min_tissue: Annotated[float, Range(0, 1)] = 0.5
    """Minimum fraction of a patch covered by the tissue mask."""
    regions: Path | None = None
    """Harvest annotated regions in place of the tissue mask: QuPath's GeoJSON, or a folder of NAME.geojson for
    several slides. Areas of ignored classes (Ignore*) are subtracted."""
    region_class: tuple[str, ...] = ()
    """Harvest only regions of these classes."""
    masks: Path | None = None
    """Harvest where a PNG of the whole slide, at any size, is not black, in place of the tissue mask; for several
    slides a folder of NAME.png."""
    min_cells: Annotated[int, Range(0, 10**6)] = 30
    """Minimum number of cells in a patch (the paper's pre-training set: 30)."""
    min_focus: Annotated[float, Range(0, 15)] = 0.16
    """Minimum sharpness of a patch: blurred fields have 0.05 to 0.15, sharp ones 1 to 3; 0 keeps all."""
    max_patches: Annotated[int, Range(1, 10**9)] = 500
    """Maximum number of patches per slide, spread over its tissue (the paper: 500)."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Random seed of the choice of patches and of their order in the shards."""


@dataclass(frozen=True, kw_only=True)
class CountingOptions:
    """Cell counter."""

    counter: str = NUCLEI
    """`nuclei` (a small detector that comes with this package), `haematoxylin` (classical), `detector:FILE`
    (written by `python -m finetune`), or MODULE:FUNCTION, a Python function that takes an RGB image (uint8, height
    x width x 3) and its um/px and returns cell centres (N x 2, x and y in px)."""
    detector: Path | None = None
    """Same as `--counter detector:FILE`."""
    leave_out_ink: bool = False
    """With `--counter haematoxylin`: leave out spots with the colours of ink and soot, and so black nuclei."""
    screen: bool = True
    """Pre-screen candidates at about 1 um/px with the classical counter and skip those far below `--min-cells`.
    Turn off for counters that find cells the classical one misses. The first 16 candidates are always counted
    exactly."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Shards."""

    out: Path = Path("shards")
    """Folder for shards, report, pictures and slide table."""
    shard_size: Annotated[int, Range(1, 10**9)] = 4000
    """Approximate number of patches in a shard."""
    add_shards: bool = False
    """Keep existing shards and append the patches of new slides as further shards, instead of shuffling all
    patches again."""
    tissue_geojson: bool = False
    """Write each slide's tissue mask to `tissue/NAME.geojson`, to be corrected in QuPath and given back with
    `--regions`."""
    overwrite: bool = False
    """Harvest slides again that are in `--out` with other settings, instead of refusing."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Parts of the harvest to run, and processes."""

    workers: Annotated[int, Range(0, 1024)] = 0
    """Worker processes, one slide each at a time; 0: one per core. Does not affect the result."""
    slide_minutes: Annotated[float, Range(0.01, 10**6)] = 120.0
    """Time limit per slide; slides of the paper take seconds to a few minutes."""
    dry_run: bool = False
    """Report slide by slide what would be done, without writing anything."""
    check: Path | None = None
    """Only verify this folder of shards: completeness, SHA-256, duplicates."""
    part: str | None = None
    """Harvest only this part of the slides (I/N, such as 3/16) and do not pack."""
    pack: bool = False
    """Only pack what the parts have harvested."""


@dataclass(frozen=True, kw_only=True)
class HarvestConfig(RunOptions, OutputOptions, CountingOptions, SelectionOptions, InputOptions):
    """Harvest patches with enough cells from whole-slide images into WebDataset shards."""

    def processes(self) -> int:
        """Return the number of worker processes."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class SlideEntry:
    """One slide to harvest."""

    path: Path
    name: str  # path below --wsi-dir, with "/"
    slide_id: str
    biomarker: str
    slide_mpp: float | None  # override
    settings: Mapping[str, Any] = field(repr=False)  # those that decide its patches
    columns: Mapping[str, str] = field(default_factory=dict)  # further columns of --slides
    regions: Path | None = None  # annotated areas to harvest, or a mask of them
    original: "SlideEntry | None" = None  # the slide harvested instead of this one, if the files prove equal


def validate(config: HarvestConfig) -> None:
    """Check the ranges of options.

    Raises:
        UserError: an option is out of range or excluded by another one.
    """
    cli.validate(config)
    for word in config.slide_mpp:
        _override(word)
    _check_areas(config)
    if config.part is not None:
        Part.of_text(config.part)
        if config.pack:
            raise UserError("--part and --pack exclude each other; run the parts first, then one --pack")
    paths = {"wsi-dir": config.wsi_dir, "out": config.out, "slides": config.slides, "detector": config.detector}
    for name, path in paths.items():
        if printable(str(path)) != str(path):
            raise UserError(f"--{name} {printable(str(path))} is not printable UTF-8; rename it, or give a link")


def _check_areas(config: HarvestConfig) -> None:
    """Check the options that replace the tissue mask."""
    require_paths(regions=config.regions, masks=config.masks)
    for option, path in (("regions", config.regions), ("masks", config.masks)):
        if path is not None and config.tissue_geojson:
            raise UserError(
                f"--tissue-geojson and --{option} exclude each other: {option} replace the tissue mask"
            )
    if config.regions is not None and config.masks is not None:
        raise UserError("--regions and --masks exclude each other; give one of them")
    if config.region_class and config.regions is None:
        raise UserError("--region-class chooses among regions; give them with --regions")


def overrides(config: HarvestConfig, names: Sequence[str]) -> dict[str, float]:
    """Map slides (paths below --wsi-dir) to the um/px of level 0 given by the user.

    Raises:
        UserError: a value of --slide-mpp matches none of the slides.
    """
    found = {}
    for word in config.slide_mpp:
        pattern, mpp = _override(word)
        matching = [name for name in names if _matches(name, pattern)]
        if not matching:
            raise UserError(f"--slide-mpp {word} matches no slide in {config.wsi_dir}; check the name")
        found.update(dict.fromkeys(matching, mpp))
    return found


def common_settings(config: HarvestConfig, counter: str) -> dict[str, Any]:
    """Return the settings that decide the patches of every slide, with the resampler, on which pixels depend."""
    names = ("trust_objective", "patch_mpp", "patch_size", "allow_upsampling", "min_cells", "max_patches")
    plain = as_plain(config)
    chosen = {name: plain[name] for name in (*names, "min_focus", "min_tissue", "screen", "seed")}
    return {"format": FORMAT, **chosen, "counter": counter, "resampler": resampler()}


def pixel_settings(config: HarvestConfig, counter: str, biomarker: str, slide_mpp: float | None) -> dict[str, Any]:
    """Return the settings that decide one slide's patches and their JSON."""
    return {**common_settings(config, counter), "biomarker": biomarker, "slide_mpp": slide_mpp}


def _matches(name: str, pattern: str) -> bool:
    """Return whether a name or path matches literally, brackets included, or by wildcards."""
    name, pattern = (unicodedata.normalize("NFC", text) for text in (name, pattern))
    candidates = (name, name.rsplit("/", 1)[-1])
    return pattern in candidates or any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates)


def _override(word: str) -> tuple[str, float]:
    """Split a value of --slide-mpp into pattern and um/px."""
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
