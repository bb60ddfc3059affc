"""Harvest of one slide into one tar: tissue, candidates, screen, exact count, sharp patches with enough cells."""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from patch_extraction.config import MAX_PATCH_MPP, HarvestConfig, SlideEntry
from patch_extraction.counters.base import CellCounter
from patch_extraction.harvesting.candidates import on_tissue, spread_order, tissue_shares, z_ordered
from patch_extraction.harvesting.focus import focus
from patch_extraction.harvesting.near_misses import MIN_FRACTION, remove_near_misses
from patch_extraction.harvesting.search_area import save_tissue, search_area
from patch_extraction.harvesting.slide_plan import HarvestStats, SlidePlan
from patch_extraction.reports.contact_sheets import KeptPatches, save_thumbnail
from patch_extraction.slide_store.file_names import THUMBNAILS, failure_log_path, record_path, tar_path
from patch_extraction.slide_store.fingerprint import fingerprint, is_copy, last_change
from patch_extraction.slide_store.slide_record import (
    DUPLICATE,
    FAILED,
    HARVESTED,
    NO_PATCH,
    Record,
    read_record,
    write_record,
)
from patch_extraction.slide_store.slide_tar import SlideTar
from shared.errors import DISK_FULL, UserError
from shared.files import folder_name, printable
from shared.shards.format import sample_key
from shared.wsi.slide import MOST_UPSAMPLING, Slide, SlideError
from shared.wsi.tissue import Tissue, unusable_colours

MAKE_ROOM = "make room and run the same command again"
FIRST_CANDIDATES = 16  # counted before any is screened, to see whether screening pays
LARGE_BLOCK = 24 << 20  # bytes; see `_keep_freed_memory`
OnProgress = Callable[[int], None]  # takes the number of patches kept so far


class CountedPatch(NamedTuple):
    """A candidate, read and counted."""

    corner: tuple[int, int]
    """Px of level 0."""
    patch: np.ndarray | SlideError
    """uint8 RGB, or the error of reading it."""
    points_N2: np.ndarray
    """Cells, px of the patch."""


def harvest_slide(
    entry: SlideEntry, config: HarvestConfig, counter: CellCounter, on_progress: OnProgress = lambda _: None
) -> Record:
    """Write a slide's tar, record and thumbnail; failures are recorded, not raised.

    Raises:
        UserError: the disk is full, which would stop the next slide too.
    """
    start = time.monotonic()
    _keep_freed_memory()
    fields = _initial_fields(entry, config)  # of the record, as they become known
    log = failure_log_path(config.out, entry.slide_id)
    try:
        log.unlink(missing_ok=True)  # of an earlier attempt
        if entry.original is not None and _is_duplicate(entry, entry.original, config):
            fields |= {"status": DUPLICATE, "reason": _same_as(entry.original), **_file_fields(entry)}
        else:
            with Slide(entry.path, entry.slide_mpp, config.trust_objective, config.reader) as slide:
                _harvest_open(SlidePlan.of(slide, entry, config, counter), fields, on_progress)
    except UserError as error:  # of the slide or of the counter
        fields |= {"status": FAILED, "reason": printable(str(error))}
    except OSError as error:
        if error.errno in DISK_FULL:
            place = error.filename or config.out
            raise UserError(f"cannot write {place}: {error.strerror}; {MAKE_ROOM}") from error
        fields |= {"status": FAILED, "reason": printable(f"{entry.path}: {error}")}
    except Exception as error:  # one odd slide in thousands must not stop the others
        log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        reason = printable(f"{entry.path}: unexpected {type(error).__name__}; see {log}")
        fields |= {"status": FAILED, "reason": reason}
    return _stored(entry, config, {**fields, "seconds": round(time.monotonic() - start, 2)})


def failed_record(entry: SlideEntry, config: HarvestConfig, reason: str, seconds: float) -> Record:
    """Return the record of a slide whose process was ended; stored unless this is a dry run."""
    fields = _initial_fields(entry, config)
    fields |= {"status": FAILED, "reason": printable(reason), "seconds": round(seconds, 2)}
    if config.dry_run:
        return Record(entry.name, entry.slide_id, entry.biomarker, **fields)
    return _stored(entry, config, fields)


def require_resolution(slide: Slide, config: HarvestConfig) -> None:
    """Refuse a slide that was scanned too coarsely.

    Raises:
        SlideError: no cells can be counted, or px would be enlarged without --allow-upsampling.
    """
    if slide.mpp > MAX_PATCH_MPP:
        raise SlideError(
            f"{slide.path} was scanned at {slide.mpp:.3g} um/px, too coarse to count cells: only an outline "
            f"of its tissue is drawn, in {config.out / THUMBNAILS}; leave it out"
        )
    if slide.mpp > MOST_UPSAMPLING * config.patch_mpp and not config.allow_upsampling:
        own = math.ceil(slide.mpp * 100) / 100
        raise SlideError(
            f"{slide.path} was scanned at {slide.mpp:.3g} um/px, coarser than --patch-mpp {config.patch_mpp:g}; "
            f"harvest it with --patch-mpp {own:g} into another --out, or enlarge it with --allow-upsampling"
        )


def _is_duplicate(entry: SlideEntry, original: SlideEntry, config: HarvestConfig) -> bool:
    """Return whether a slide is a copy of another one by all its bytes, which are compared once."""
    before = read_record(record_path(config.out, entry.slide_id))
    known = before is not None and before.status == DUPLICATE and before.reason == _same_as(original)
    if known and before is not None and before.source_changed == last_change(entry.path):
        return True
    return is_copy(entry.path, original.path)


def _same_as(original: SlideEntry) -> str:
    return f"the same file as {original.name}"


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory, which patches need again and again.

    glibc keeps twice the size of the largest block that was ever freed. Fresh memory costs a twentieth of the time
    of a harvest. Other libraries are not affected."""
    np.empty(LARGE_BLOCK, np.uint8)


def _initial_fields(entry: SlideEntry, config: HarvestConfig) -> dict[str, Any]:
    return {"settings": entry.settings, "wsi_dir": folder_name(config.wsi_dir), "columns": dict(entry.columns)}


def _file_fields(entry: SlideEntry) -> dict[str, Any]:
    """Return the fields of a record that identify the slide's file."""
    return {
        "source_bytes": entry.path.stat().st_size,
        "source_changed": last_change(entry.path),
        "fingerprint": fingerprint(entry.path),
    }


def _stored(entry: SlideEntry, config: HarvestConfig, fields: dict[str, Any]) -> Record:
    record = Record(entry.name, entry.slide_id, entry.biomarker, **fields)
    write_record(config.out, record)  # also of failed slides, for the process that packs the parts
    return record


def _harvest_open(plan: SlidePlan, fields: dict[str, Any], on_progress: OnProgress) -> None:
    """Harvest an open slide and update the fields of its record; raise SlideError if it gives nothing."""
    slide, entry, config = plan.slide, plan.entry, plan.config
    remove_near_misses(config.out, entry.slide_id)
    fields |= {
        "slide_mpp": round(slide.mpp, 6),
        "mpp_source": slide.resolution.source,
        "warning": slide.resolution.warning,
        "quickhash": slide.quickhash,
        **_file_fields(entry),
    }
    tissue = search_area(slide, entry, config)
    if config.tissue_geojson:
        save_tissue(slide, entry, config, tissue)
    fields["tissue_mm2"] = round(tissue.area_mm2, 3)
    stats = HarvestStats()
    try:
        require_resolution(slide, config)
        if not tissue.mask.any():
            reason = _colour_fault(tissue) or f"see its picture in {config.out / THUMBNAILS}"
            raise SlideError(f"{slide.path} shows no tissue; {reason}")
        plan = dataclasses.replace(plan, tissue_RC=tissue_shares(plan.grid, tissue, slide.mpp))
        candidates_N2 = on_tissue(plan.tissue_RC, config.min_tissue)
        fields["candidates"] = len(candidates_N2)
        with SlideTar(tar_path(config.out, entry.slide_id)) as tar:
            _keep_patches(plan, _shuffled(candidates_N2, entry, config.seed), tar, stats, on_progress)
        fields |= tar.record_fields
        stats.near_misses.save(config.out, entry.slide_id)
    finally:  # the picture matters most for slides without patches
        kept = KeptPatches(plan.grid.side, stats.corners, stats.cells)
        save_thumbnail(config.out, entry, slide, tissue, kept)
        fields |= {"screened": stats.screened, "counted": stats.counted, "unreadable": len(stats.errors)}
    fields["kept"] = len(stats.cells)
    blurred = len(stats.sharpness) - len(stats.cells)
    if stats.sharpness:
        fields["focus"] = round(float(np.median(stats.sharpness)), 3)
        fields["blurred"] = round(blurred / len(stats.sharpness), 4)
    fields["histogram"] = tuple(stats.histogram)
    fields["status"] = HARVESTED if stats.cells else NO_PATCH
    if not stats.cells:
        fields["reason"] = _reason_without_patches(config, len(candidates_N2), tissue, blurred)


def _shuffled(cells_N2: np.ndarray, entry: SlideEntry, seed: int) -> np.ndarray:
    """Return grid cells in random order, spread over the slide, independent of other slides."""
    rng = np.random.default_rng((seed, int(entry.slide_id[-8:], 16)))
    return cells_N2[spread_order(cells_N2, rng)]


def _keep_patches(
    plan: SlidePlan, cells_N2: np.ndarray, tar: SlideTar, stats: HarvestStats, on_progress: OnProgress
) -> None:
    """Count candidates and write those with enough cells, until there are enough patches.

    Raises:
        SlideError: not one candidate can be decoded.
    """
    first_N2, others_N2 = cells_N2[:FIRST_CANDIDATES], cells_N2[FIRST_CANDIDATES:]
    _process_candidates(plan, first_N2, tar, stats, on_progress)
    if len(others_N2) and len(stats.cells) < plan.config.max_patches:
        others_N2 = plan.screened(others_N2, len(stats.cells) / len(first_N2))
    _process_candidates(plan, others_N2, tar, stats, on_progress)
    stats.screened = len(first_N2) + len(others_N2)
    if stats.errors and len(stats.errors) == len(cells_N2):
        raise stats.errors[0]


def _process_candidates(
    plan: SlidePlan, cells_N2: np.ndarray, tar: SlideTar, stats: HarvestStats, on_progress: OnProgress
) -> None:
    """Keep candidates with enough cells as long as patches are missing.

    As many candidates as patches are missing form a group, within which neighbours follow one another.
    """
    while len(cells_N2) and (missing := plan.config.max_patches - len(stats.cells)):
        group_N2, cells_N2 = cells_N2[:missing], cells_N2[missing:]
        for counted in _counted(plan, z_ordered(group_N2)):
            _process_patch(plan, counted, tar, stats)
            if stats.cells:  # 0 starts the slide's time limit
                on_progress(len(stats.cells))


def _process_patch(plan: SlidePlan, counted: CountedPatch, tar: SlideTar, stats: HarvestStats) -> None:
    """Write a patch if it holds enough cells and is in focus, and update the statistics."""
    corner, patch, points_N2 = counted
    config, cells = plan.config, len(points_N2)
    stats.counted += 1
    if isinstance(patch, SlideError):
        stats.errors.append(patch)
        return
    stats.add_to_histogram(cells)
    if cells < MIN_FRACTION * config.min_cells:
        return
    sharpness = focus(patch, plan.mpp)
    fields = plan.sample_fields(corner, points_N2, sharpness)
    key = sample_key(plan.entry.slide_id, *corner)
    if cells < config.min_cells:
        stats.near_misses.offer(cells / config.min_cells, key, patch, fields)
        return
    stats.sharpness.append(sharpness)
    if sharpness < config.min_focus:
        stats.near_misses.offer(sharpness / config.min_focus, key, patch, fields)
        return
    tar.add(key, patch, fields)
    stats.corners.append(corner)
    stats.cells.append(cells)


def _counted(plan: SlidePlan, cells_N2: np.ndarray) -> Iterator[CountedPatch]:
    """Read the patches of grid cells and count their cells, in batches."""
    batch = plan.counter.batch
    for start in range(0, len(cells_N2), batch):
        corners = (cells_N2[start : start + batch] * plan.grid.side).tolist()
        patches = [_read(plan, x, y) for x, y in corners]
        whole = [patch for patch in patches if not isinstance(patch, SlideError)]
        found = iter(plan.counter.find_each(whole, plan.mpp))
        for (x, y), patch in zip(corners, patches, strict=True):
            points_N2 = np.zeros((0, 2)) if isinstance(patch, SlideError) else next(found)
            yield CountedPatch((x, y), patch, points_N2)


def _read(plan: SlidePlan, x: int, y: int) -> np.ndarray | SlideError:
    try:
        return plan.read(x, y)
    except SlideError as error:
        return error


def _colour_fault(tissue: Tissue) -> str:
    fault = unusable_colours(np.asarray(tissue.overview))
    return fault and f"{fault}, and cells are counted in colour; leave it out, or give a --counter of your own"


def _reason_without_patches(config: HarvestConfig, candidates: int, tissue: Tissue, blurred: int) -> str:
    if not candidates:
        um = config.patch_size * config.patch_mpp
        return f"no place of {um:.0f} um is covered by tissue to {config.min_tissue:.0%} (--min-tissue)"
    if blurred:
        return f"{blurred} places hold {config.min_cells} cells, and all are out of focus (--min-focus)"
    return _colour_fault(tissue) or f"no place holds {config.min_cells} cells (--min-cells)"
