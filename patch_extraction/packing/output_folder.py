"""The output folder of a harvest: nobody else's files touched, nothing lost unsaid."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import openslide

from patch_extraction.config import HarvestConfig, SlideEntry, common_settings
from patch_extraction.packing.pack import INDEX, own_shards, read_index
from patch_extraction.slide_store.file_names import CONTACT_SHEET, REJECTED_SHEET, REPORT, SLIDES_CSV, tar_path
from patch_extraction.slide_store.fingerprint import fingerprint, is_sampled
from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, KEPT, Record, read_record
from shared.errors import UserError
from shared.files import folder_name
from shared.training.run_folder import CONFIG


def refuse_foreign(config: HarvestConfig) -> None:
    """Touch nothing in a folder that holds files of others by the names of a harvest's.

    Raises:
        UserError: there are such files, and no sign of an earlier harvest; or --slides would be written over.
    """
    out = config.out
    if config.slides is not None and config.slides.resolve() == (out / SLIDES_CSV).resolve():
        raise UserError(f"--slides {config.slides} is where a harvest into {out} writes its results; rename it")
    named = [out / name for name in (INDEX, SLIDES_CSV, CONFIG, REPORT, CONTACT_SHEET, REJECTED_SHEET)]
    there = sorted(path.name for path in (*out.glob("shard-*.tar"), *named) if path.exists())
    if there and not _begun(out):
        raise UserError(f"{out} holds {there[0]}, which no harvest made; choose another --out")


def _begun(out: Path) -> bool:
    """Whether a harvest has written to a folder; it begins with its settings."""
    try:
        configured = "min_cells" in json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        configured = False
    return configured or read_index(out) is not None or bool(own_shards(out) or _records(out))


def kept_slides(sources: Sequence[SlideEntry], config: HarvestConfig, counter: str) -> list[Record]:
    """Records of slides harvested from --wsi-dir earlier and gone from it since; their patches stay.

    Raises:
        UserError: there are patches of slides of another folder; those of a slide that is gone are damaged or
            were made with other settings, and it cannot be harvested again.
    """
    present = {source.slide_id: source for source in sources}
    records = [record for record in _records(config.out) if record.kept]
    others = [record for record in records if _of_another_folder(record, present.get(record.slide_id), config)]
    if others:
        one = f"{others[0].slide} of {others[0].wsi_dir or 'another folder'}"
        count = f"{len(others)} slides that are" if len(others) > 1 else "a slide that is"
        raise UserError(
            f"{config.out} holds {count} not below {config.wsi_dir} ({one}); "
            "give another --out, or harvest their common parent folder"
        )
    gone = _without_moved([record for record in records if record.slide_id not in present], sources, config.out)
    for record in gone:
        _check_gone(record, config, counter)
    return [dataclasses.replace(record, status=KEPT) for record in gone]


def _without_moved(gone: Sequence[Record], sources: Sequence[SlideEntry], out: Path) -> list[Record]:
    """Return the slides that are gone, without those that were moved; the patches of the latter are removed."""
    left = []
    for record in gone:
        moved = next((source for source in sources if _is_harvested(source.path, record)), None)
        if moved is None:
            left.append(record)
            continue
        print(f"{record.slide} is {moved.name} now; its patches are made again under that name")
        tar_path(out, record.slide_id).with_suffix(".json").unlink(missing_ok=True)
        tar_path(out, record.slide_id).unlink(missing_ok=True)
    return left


def _is_harvested(path: Path, record: Record) -> bool:
    """Return whether a file is the slide of a record, by size, fingerprint and OpenSlide's quickhash."""
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


def harvested_slides(
    sources: Sequence[SlideEntry], done: Mapping[str, Record], config: HarvestConfig
) -> list[Record]:
    """Records of all slides, which other processes have harvested, or have found to fail.

    Raises:
        UserError: there are slides that nobody has tried.
    """
    records = dict(done)
    present = {source.slide_id: source for source in sources}
    for record in _records(config.out):
        if record.slide_id in present and _was_tried(record, present[record.slide_id]):
            records.setdefault(record.slide_id, record)
    left = [source.name for source in sources if source.slide_id not in records]
    if left:
        raise UserError(
            f"{len(left)} of {len(sources)} slides are still to be harvested into {config.out} ({left[0]}); "
            "start their parts again, finished slides are skipped"
        )
    return [records[source.slide_id] for source in sources]


def _was_tried(record: Record, source: SlideEntry) -> bool:
    """Whether a slide without patches was tried as it would be now."""
    tried = record.status == FAILED or (record.status == DUPLICATE and source.original is not None)
    return tried and all(record.settings.get(name) == value for name, value in source.settings.items())


def _records(out: Path) -> list[Record]:
    records = [read_record(path) for path in sorted(out.glob("slides/*.json"))]
    return [record for record in records if record is not None]


def _of_another_folder(record: Record, source: SlideEntry | None, config: HarvestConfig) -> bool:
    """Whether a record's slide is none of this run's; a folder may move, a slide of equal size is the same."""
    if record.wsi_dir == folder_name(config.wsi_dir):
        return False
    try:
        return source is None or source.path.stat().st_size != record.source_bytes
    except OSError:
        return True


def _check_gone(record: Record, config: HarvestConfig, counter: str) -> None:
    """Refuse to go on with patches that can be neither used nor made again."""
    tar = tar_path(config.out, record.slide_id)
    common = common_settings(config, counter)
    other = [name for name, value in common.items() if record.settings.get(name) != value]
    if not tar.is_file() or tar.stat().st_size != record.bytes:
        fault = f"{tar} is damaged"
    elif other:
        fault = f"{tar} was made with {other[0]} {record.settings.get(other[0])!r} instead of {common[other[0]]!r}"
    else:
        return
    lost = f"is gone from {config.wsi_dir}; put the slide back"
    if config.slides is not None:
        lost = f"is not in {config.slides}; name it there"
    raise UserError(
        f"{fault}, and its slide {record.slide} {lost}, "
        f"or remove {tar.with_suffix('.json')} to go on without its patches"
    )
