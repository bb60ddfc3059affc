"""Slides that are complete: tar and record are there, and the slide and the settings have not changed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openslide

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.slide_store.file_names import record_path, tar_path
from patch_extraction.slide_store.fingerprint import fingerprint, is_sampled, last_change
from patch_extraction.slide_store.slide_record import (
    DUPLICATE,
    FAILED,
    Record,
    read_record,
    read_records,
    write_record,
)
from patch_extraction.slide_store.slide_tar import relabel
from shared.errors import UserError
from shared.wsi.slide import Slide, SlideError


def completed_slides(entries: Sequence[SlideEntry], config: HarvestConfig) -> dict[str, Record]:
    """Return the records of complete slides by slide id.

    Raises:
        UserError: one was harvested with other settings, and --overwrite is off.
    """
    done = {}
    for entry in entries:
        record = stored_record(config.out, entry)
        if record is None:
            continue
        other = differing_settings(record, entry.settings)
        if not other:
            done[entry.slide_id] = record
        elif not config.overwrite:
            changes = ", ".join(
                f"{name} {record.settings.get(name)!r} instead of {entry.settings[name]!r}" for name in other
            )
            raise UserError(
                f"{config.out} holds patches of {entry.name} made with {changes}; "
                "choose another folder with --out, or harvest such slides again with --overwrite"
            )
    return done


def with_current_columns(entry: SlideEntry, record: Record, config: HarvestConfig) -> Record:
    """Return a complete slide's record with the present columns of --slides, which its patches then hold."""
    columns = dict(entry.columns)
    if record.columns == columns:
        return record
    fields = relabel(tar_path(config.out, record.slide_id), columns)
    record = dataclasses.replace(record, columns=columns, **fields)
    write_record(config.out, record)
    return record


def tried_slides(entries: Sequence[SlideEntry], done: Mapping[str, Record], config: HarvestConfig) -> list[Record]:
    """Return the records of all slides after the parts have run, in the order of `entries`.

    Raises:
        UserError: some slides have not been tried.
    """
    records = dict(done)
    by_id = {entry.slide_id: entry for entry in entries}
    for record in read_records(config.out):
        if record.slide_id in by_id and _was_tried(record, by_id[record.slide_id]):
            records.setdefault(record.slide_id, record)
    left = [entry.name for entry in entries if entry.slide_id not in records]
    if left:
        raise UserError(
            f"{len(left)} of {len(entries)} slides are still to be harvested into {config.out} ({left[0]}); "
            "run their parts again, complete slides are skipped"
        )
    return [records[entry.slide_id] for entry in entries]


def stored_record(out: Path, entry: SlideEntry) -> Record | None:
    """Return the record of a slide whose tar is complete and whose file is unchanged, whatever the settings.

    A slide that is inaccessible, as on a disk that is not mounted, keeps its patches.
    """
    record = read_record(record_path(out, entry.slide_id))
    if record is None or _size(tar_path(out, entry.slide_id)) != record.bytes:
        return None
    return record if _is_unchanged(entry, record) else None


def differing_settings(record: Record, settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings in which a record differs."""
    return [name for name, value in settings.items() if record.settings.get(name) != value]


def is_slide_of(record: Record, path: Path) -> bool:
    """Return whether a file under any name is the slide of a record, by size, fingerprint and quickhash."""
    try:
        if not record.fingerprint or not path.is_file() or path.stat().st_size != record.source_bytes:
            return False
        same = fingerprint(path) == record.fingerprint
        if not same or not is_sampled(record.source_bytes):
            return same
        with openslide.OpenSlide(path) as handle:
            quickhash = handle.properties.get("openslide.quickhash-1", "")
        return bool(quickhash == (record.quickhash or quickhash))
    except (OSError, openslide.OpenSlideError):
        return False  # the harvest reports the reason


def _is_unchanged(entry: SlideEntry, record: Record) -> bool:
    """Return whether a slide is the one that was harvested, or is inaccessible.

    A file with another date is the same if its fingerprint is and, where this covers samples, um/px and quickhash.
    """
    try:
        if entry.path.stat().st_size != record.source_bytes:
            return False
        if last_change(entry.path) == record.source_changed:
            return True
        if record.fingerprint and fingerprint(entry.path) != record.fingerprint:
            return False
        if record.fingerprint and not is_sampled(record.source_bytes):
            return True
        with Slide(entry.path, entry.slide_mpp, entry.settings.get("trust_objective", False)) as slide:
            mpp, quickhash = round(slide.mpp, 6), slide.quickhash
    except OSError:
        return True
    except SlideError:
        return not record.fingerprint  # one of several files, the others of which may be inaccessible
    return mpp == record.slide_mpp and quickhash == (record.quickhash or quickhash)


def _was_tried(record: Record, entry: SlideEntry) -> bool:
    """Return whether a slide without patches was tried with the present settings."""
    tried = record.status == FAILED or (record.status == DUPLICATE and entry.original is not None)
    return tried and not differing_settings(record, entry.settings)


def _size(path: Path) -> int | None:
    """Return the bytes of a file; None if it is inaccessible."""
    try:
        return path.stat().st_size
    except OSError:
        return None
