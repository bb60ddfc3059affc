"""Output folder of a harvest: no foreign files overwritten, no patches of earlier runs lost."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from patch_extraction.config import HarvestConfig, SlideEntry, common_settings
from patch_extraction.slide_store.completed import differing_settings, is_slide_of
from patch_extraction.slide_store.file_names import (
    CONTACT_SHEET,
    REJECTED_SHEET,
    REPORT,
    SLIDES_CSV,
    record_path,
    tar_path,
)
from patch_extraction.slide_store.slide_record import KEPT, Record, read_records
from shared.errors import UserError
from shared.files import folder_name
from shared.shards.format import INDEX, own_shards, read_index
from shared.training.run_folder import CONFIG


def require_own_folder(config: HarvestConfig) -> None:
    """Refuse an output folder with foreign files that have names of a harvest's.

    Raises:
        UserError: there are such files and no sign of an earlier harvest; or --slides would be overwritten.
    """
    out = config.out
    if config.slides is not None and config.slides.resolve() == (out / SLIDES_CSV).resolve():
        raise UserError(f"--slides {config.slides} is where a harvest into {out} writes its results; rename it")
    named = [out / name for name in (INDEX, SLIDES_CSV, CONFIG, REPORT, CONTACT_SHEET, REJECTED_SHEET)]
    there = sorted(path.name for path in (*out.glob("shard-*.tar"), *named) if path.exists())
    if there and not _is_harvest_folder(out):
        raise UserError(f"{out} holds {there[0]}, which no harvest made; choose another --out")


def kept_slides(entries: Sequence[SlideEntry], config: HarvestConfig, counter: str) -> list[Record]:
    """Return records of slides harvested from --wsi-dir earlier and absent now; their patches stay.

    Raises:
        UserError: there are patches of slides of another folder; or patches of an absent slide are damaged or of
            other settings, and cannot be harvested again.
    """
    by_id = {entry.slide_id: entry for entry in entries}
    records = [record for record in read_records(config.out) if record.kept]
    others = [record for record in records if _is_of_another_folder(record, by_id.get(record.slide_id), config)]
    if others:
        one = f"{others[0].slide} of {others[0].wsi_dir or 'another folder'}"
        count = f"{len(others)} slides that are" if len(others) > 1 else "a slide that is"
        raise UserError(
            f"{config.out} holds {count} not below {config.wsi_dir} ({one}); "
            "give another --out, or harvest their common parent folder"
        )
    absent = _without_moved([record for record in records if record.slide_id not in by_id], entries, config.out)
    for record in absent:
        _require_usable(record, config, counter)
    return [dataclasses.replace(record, status=KEPT) for record in absent]


def _is_harvest_folder(out: Path) -> bool:
    """Return whether a harvest has written to a folder; the first file is that of its settings."""
    try:
        configured = "min_cells" in json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        configured = False
    return configured or read_index(out) is not None or bool(own_shards(out) or read_records(out))


def _without_moved(absent: Sequence[Record], entries: Sequence[SlideEntry], out: Path) -> list[Record]:
    """Return records of absent slides without those that were moved, whose patches are removed."""
    left = []
    for record in absent:
        moved = next((entry for entry in entries if is_slide_of(record, entry.path)), None)
        if moved is None:
            left.append(record)
            continue
        print(f"{record.slide} is {moved.name} now; its patches are made again under that name")
        record_path(out, record.slide_id).unlink(missing_ok=True)
        tar_path(out, record.slide_id).unlink(missing_ok=True)
    return left


def _is_of_another_folder(record: Record, entry: SlideEntry | None, config: HarvestConfig) -> bool:
    """Return whether a record is of a foreign slide; after a move of the folder, slides of equal size are the
    same."""
    if record.wsi_dir == folder_name(config.wsi_dir):
        return False
    try:
        return entry is None or entry.path.stat().st_size != record.source_bytes
    except OSError:
        return True


def _require_usable(record: Record, config: HarvestConfig, counter: str) -> None:
    """Refuse patches of an absent slide that can be neither used nor made again."""
    tar = tar_path(config.out, record.slide_id)
    common = common_settings(config, counter)
    other = differing_settings(record, common)
    if not tar.is_file() or tar.stat().st_size != record.bytes:
        fault = f"{tar} is damaged"
    elif other:
        fault = f"{tar} was made with {other[0]} {record.settings.get(other[0])!r} instead of {common[other[0]]!r}"
    else:
        return
    remedy = f"is gone from {config.wsi_dir}; put the slide back"
    if config.slides is not None:
        remedy = f"is not in {config.slides}; name it there"
    raise UserError(
        f"{fault}, and its slide {record.slide} {remedy}, "
        f"or remove {record_path(config.out, record.slide_id)} to go on without its patches"
    )
