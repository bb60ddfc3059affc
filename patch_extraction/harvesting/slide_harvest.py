"""One slide -> one tar: tissue, candidates, screen, exact count, and the patches that hold enough cells."""

import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patch_extraction.config import COARSEST_PATCH_MPP, HarvestConfig, SlideEntry
from patch_extraction.counters.base import CellCounter, HaematoxylinCounter
from patch_extraction.harvesting.candidates import Grid, neighbours_together, on_tissue, screen, spread_order
from patch_extraction.harvesting.near_misses import NearMisses, remove_near_misses
from patch_extraction.reports.pictures import save_thumbnail
from patch_extraction.slide_store.file_names import THUMBNAILS, tar_path
from patch_extraction.slide_store.fingerprint import fingerprint, is_copy, last_change
from patch_extraction.slide_store.slide_record import (
    BIN,
    DUPLICATE,
    FAILED,
    HARVESTED,
    NO_PATCH,
    Record,
    write_record,
)
from patch_extraction.slide_store.slide_tar import SlideTar
from shared.errors import DISK_FULL, UserError
from shared.files import folder_name, printable
from shared.wsi.slide import MOST_UPSAMPLING, Slide, SlideError
from shared.wsi.tissue import Tissue, find_tissue, unusable_colours

MAKE_ROOM = "make room and start the same command again"
# So many places are counted before any is screened. Where nearly all of them hold enough cells, the screen would
# refuse next to none of the others, and costs more than it saves: a third of an exact count.
FIRST_PLACES = 16
DENSE = 0.9
LARGE_BLOCK = 24 << 20  # bytes; see `_keep_freed_memory`


@dataclass(frozen=True)
class SlidePlan:
    """How the patches of an open slide are read and counted."""

    slide: Slide
    source: SlideEntry
    config: HarvestConfig
    counter: CellCounter
    grid: Grid

    @classmethod
    def of(cls, slide: Slide, source: SlideEntry, config: HarvestConfig, counter: CellCounter) -> "SlidePlan":
        """The plan of an open slide, its grid laid out."""
        return cls(slide, source, config, counter, Grid.over(slide, config.patch_size * config.patch_mpp))

    @property
    def mpp(self) -> float:
        """um/px of the stored patches: what was asked for, up to the rounding of a patch to whole px."""
        return self.grid.side * self.slide.mpp / self.config.patch_size

    def read(self, x: int, y: int) -> np.ndarray:
        """The patch whose corner lies at (`x`, `y`) px of level 0: uint8 RGB."""
        size = self.config.patch_size
        return self.slide.read_pixels(x, y, size, size, self.mpp, allow_upsampling=True)

    def screened(self, places_N2: np.ndarray, share: float) -> np.ndarray:
        """The places worth an exact count; the classical counter judges, whoever counts then.

        It does not look for ink: on a coarse level, where colours are coarser still, nuclei can have its colours.

        Args:
            places_N2: Cells of the grid.
            share: How many of the places counted so far hold enough cells.
        """
        cheap = isinstance(self.counter, HaematoxylinCounter)  # any other costs far more than the screen
        if not self.config.screen or (cheap and share >= DENSE):
            return places_N2
        judge = HaematoxylinCounter(leave_out_ink=False)
        return places_N2[screen(self.slide, self.grid, places_N2, judge, self.config.min_cells)]

    def fields(self, x: int, y: int, cells: int) -> dict[str, object]:
        """What `KEY.json` says of a patch."""
        window = self.slide.window(self.mpp, allow_upsampling=True)
        return {
            "slide": self.source.name,
            "biomarker": self.source.biomarker,
            **{"x": x, "y": y, "width": self.grid.side, "height": self.grid.side},
            "mpp": round(self.mpp, 6),
            "slide_mpp": round(self.slide.mpp, 6),
            "mpp_source": self.slide.resolution.source,
            **{"level": window.level, "factor": round(window.factor, 6), "cells": cells},
        }


@dataclass
class HarvestStats:
    """What came of looking at places one by one."""

    screened: int = 0
    counted: int = 0
    errors: list[SlideError] = field(default_factory=list)  # of places that could not be read
    corners: list[tuple[int, int]] = field(default_factory=list)  # of the patches kept, px of level 0
    cells: list[int] = field(default_factory=list)  # counted in each of them
    histogram: list[int] = field(default_factory=list)  # places counted, by BIN cells
    near_misses: NearMisses = field(default_factory=NearMisses)

    def note(self, cells: int) -> None:
        """Enter a place in the histogram."""
        self.histogram += [0] * (cells // BIN + 1 - len(self.histogram))
        self.histogram[cells // BIN] += 1


def harvest_slide(
    source: SlideEntry, config: HarvestConfig, counter: CellCounter, tell: Callable[[int], None] | None = None
) -> Record:
    """Write a slide's tar and record, and its thumbnail; a slide that fails is reported, never raised.

    Args:
        source: The slide.
        config: What is asked for.
        counter: Counts the cells of places.
        tell: Takes the number of patches kept so far, again and again.

    Raises:
        UserError: the disk is full; going on with the next slide would not help.
    """
    start = time.monotonic()
    _keep_freed_memory()
    facts = _first_facts(source, config)  # fields of the record, as they become known
    trace = config.out / f"failure-{source.slide_id}.log"
    if source.original is not None and is_copy(source.path, source.original.path):
        reason = f"the same file as {source.original.name}"
        return _stored(source, config, {**facts, "status": DUPLICATE, "reason": reason})
    try:
        trace.unlink(missing_ok=True)  # of an earlier attempt
        with Slide(source.path, source.slide_mpp, config.trust_objective, config.reader) as slide:
            _harvest_open(SlidePlan.of(slide, source, config, counter), facts, tell or (lambda _: None))
    except UserError as error:  # a SlideError, or what a counter says
        facts |= {"status": FAILED, "reason": printable(str(error))}
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(f"cannot write to {config.out}: {error.strerror}; {MAKE_ROOM}") from error
        facts |= {"status": FAILED, "reason": printable(f"{source.path}: {error}")}
    except Exception as error:  # one odd slide in thousands must not end the night; the trace is kept
        trace.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        facts |= {
            "status": FAILED,
            "reason": printable(f"{source.path}: unexpected {type(error).__name__}; see {trace}"),
        }
    return _stored(source, config, {**facts, "seconds": round(time.monotonic() - start, 2)})


def failed_record(source: SlideEntry, config: HarvestConfig, reason: str, seconds: float) -> Record:
    """Return the record of a slide whose process came to no end of its own; stored, unless this is a dry run."""
    facts = _first_facts(source, config)
    facts |= {"status": FAILED, "reason": printable(reason), "seconds": round(seconds, 2)}
    if config.dry_run:
        return Record(source.name, source.slide_id, source.biomarker, **facts)
    return _stored(source, config, facts)


def _keep_freed_memory() -> None:
    """Have the C library keep what patches need again and again, instead of giving it back after each.

    glibc learns from the largest block that it was given back how large blocks are: from then on it keeps twice as
    much. Fresh memory costs a twentieth of the time of a harvest. Other libraries do not mind.
    """
    np.empty(LARGE_BLOCK, np.uint8)


def _first_facts(source: SlideEntry, config: HarvestConfig) -> dict[str, Any]:
    return {"settings": source.settings, "wsi_dir": folder_name(config.wsi_dir)}


def _stored(source: SlideEntry, config: HarvestConfig, facts: dict[str, Any]) -> Record:
    record = Record(source.name, source.slide_id, source.biomarker, **facts)
    write_record(config.out, record)  # of a failed slide, too: one that packs what others harvested has to know
    return record


def _harvest_open(plan: SlidePlan, facts: dict[str, Any], tell: Callable[[int], None]) -> None:
    """Harvest an open slide and note what was found; raises SlideError where nothing can be had from it."""
    slide, source, config = plan.slide, plan.source, plan.config
    remove_near_misses(config.out, source.slide_id)
    status = source.path.stat()
    facts |= {
        "slide_mpp": round(slide.mpp, 6),
        "mpp_source": slide.resolution.source,
        "warning": slide.resolution.warning,
        "source_bytes": status.st_size,
        "source_changed": last_change(source.path),
        "fingerprint": fingerprint(source.path),
        "quickhash": slide.quickhash,
    }
    tissue = find_tissue(slide)
    facts["tissue_mm2"] = round(tissue.area_mm2, 3)
    tally = HarvestStats()
    try:
        refuse_resolution(slide, config)
        if not tissue.mask.any():
            reason = _colour_fault(tissue) or f"see its picture in {config.out / THUMBNAILS}"
            raise SlideError(f"{slide.path} shows no tissue; {reason}")
        candidates_N2 = on_tissue(plan.grid, tissue, slide.mpp, config.min_tissue)
        facts["candidates"] = len(candidates_N2)
        with SlideTar(tar_path(config.out, source.slide_id)) as tar:
            _keep_patches(plan, _in_order(candidates_N2, source, config.seed), tar, tally, tell)
        facts |= tar.facts
        tally.near_misses.save(config.out, source.slide_id)
    finally:  # a slide that gave nothing is the one whose picture is looked at
        save_thumbnail(config.out, source, slide, tissue, plan.grid.side, tally.corners, tally.cells)
        facts |= {"screened": tally.screened, "counted": tally.counted, "unreadable": len(tally.errors)}
    facts["kept"] = len(tally.cells)
    facts["histogram"] = tuple(tally.histogram)
    facts["status"] = HARVESTED if tally.cells else NO_PATCH
    facts["reason"] = "" if tally.cells else _why_nothing(config, len(candidates_N2), tissue)


def refuse_resolution(slide: Slide, config: HarvestConfig) -> None:
    """Raise SlideError for a slide that was scanned too coarsely."""
    too_coarse = slide.mpp > MOST_UPSAMPLING * config.patch_mpp and not config.allow_upsampling
    if slide.mpp > COARSEST_PATCH_MPP:
        raise SlideError(
            f"{slide.path} was scanned at {slide.mpp:.3g} um/px, too coarse to count cells on: only an outline "
            f"of its tissue can be had, in {config.out / THUMBNAILS}; leave it out"
        )
    if too_coarse:
        own = math.ceil(slide.mpp * 100) / 100
        raise SlideError(
            f"{slide.path} was scanned at {slide.mpp:.3g} um/px, coarser than --patch-mpp {config.patch_mpp:g}; "
            f"harvest it with --patch-mpp {own:g} into another --out, or enlarge it with --allow-upsampling"
        )


def _in_order(places_N2: np.ndarray, source: SlideEntry, seed: int) -> np.ndarray:
    """The order to look at places in: random, spread over the slide, and the slide's own."""
    rng = np.random.default_rng((seed, int(source.slide_id[-8:], 16)))
    return places_N2[spread_order(places_N2, rng)]


def _keep_patches(
    plan: SlidePlan, places_N2: np.ndarray, tar: SlideTar, tally: HarvestStats, tell: Callable[[int], None]
) -> None:
    """Count place after place and write those with enough cells, until there are enough patches.

    Raises:
        SlideError: not one place can be decoded.
    """
    first_N2, others_N2 = places_N2[:FIRST_PLACES], places_N2[FIRST_PLACES:]
    _look_at(plan, first_N2, tar, tally, tell)
    if len(others_N2) and len(tally.cells) < plan.config.max_patches:
        others_N2 = plan.screened(others_N2, len(tally.cells) / len(first_N2))
    _look_at(plan, others_N2, tar, tally, tell)
    tally.screened = len(first_N2) + len(others_N2)
    if tally.errors and len(tally.errors) == len(places_N2):
        raise tally.errors[0]


def _look_at(
    plan: SlidePlan, places_N2: np.ndarray, tar: SlideTar, tally: HarvestStats, tell: Callable[[int], None]
) -> None:
    """Keep what is worth it of the places, as long as patches are lacking.

    As many places as patches are lacking are looked at in one go, so that neighbours can follow one another.
    """
    while len(places_N2) and (lacking := plan.config.max_patches - len(tally.cells)):
        now_N2, places_N2 = places_N2[:lacking], places_N2[lacking:]
        for x, y, patch, cells in _counted(plan, neighbours_together(now_N2)):
            _keep(plan, (x, y), patch, cells, tar, tally)
            if tally.cells:  # 0 means that the slide's time begins
                tell(len(tally.cells))


def _keep(
    plan: SlidePlan,
    corner: tuple[int, int],
    patch: np.ndarray | SlideError,
    cells: int,
    tar: SlideTar,
    tally: HarvestStats,
) -> None:
    """Write a patch if it holds enough cells; take note of it in any case."""
    tally.counted += 1
    if isinstance(patch, SlideError):
        tally.errors.append(patch)
        return
    tally.note(cells)
    key, fields = f"{plan.source.slide_id}_{corner[0]}_{corner[1]}", plan.fields(*corner, cells)
    if cells < plan.config.min_cells:
        tally.near_misses.offer(key, patch, fields, plan.config.min_cells)
        return
    tar.add(key, patch, fields)
    tally.corners.append(corner)
    tally.cells.append(cells)


def _counted(plan: SlidePlan, places_N2: np.ndarray) -> Iterator[tuple[int, int, np.ndarray | SlideError, int]]:
    """Place after place: where it is, its patch or why it cannot be read, its cells; counted in batches."""
    for start in range(0, len(places_N2), plan.counter.batch):
        corners = (places_N2[start : start + plan.counter.batch] * plan.grid.side).tolist()
        patches = [_read(plan, x, y) for x, y in corners]
        whole = [patch for patch in patches if not isinstance(patch, SlideError)]
        counts = iter([len(points_N2) for points_N2 in plan.counter.find_each(whole, plan.mpp)])
        for (x, y), patch in zip(corners, patches, strict=True):
            yield x, y, patch, 0 if isinstance(patch, SlideError) else next(counts)


def _read(plan: SlidePlan, x: int, y: int) -> np.ndarray | SlideError:
    try:
        return plan.read(x, y)
    except SlideError as error:
        return error


def _colour_fault(tissue: Tissue) -> str:
    fault = unusable_colours(np.asarray(tissue.overview))
    return fault and f"{fault}, and cells are counted in colour; leave it out, or give a --counter of your own"


def _why_nothing(config: HarvestConfig, candidates: int, tissue: Tissue) -> str:
    if not candidates:
        um = config.patch_size * config.patch_mpp
        return f"no place of {um:.0f} um is covered by tissue to {config.min_tissue:.0%} (--min-tissue)"
    return _colour_fault(tissue) or f"no place holds {config.min_cells} cells (--min-cells)"
