"""The harvest from top to bottom: slides to tars, tars to shuffled shards, report."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from patch_extraction.config import HarvestConfig, SlideEntry, common_settings
from patch_extraction.counters.base import CellCounter
from patch_extraction.harvesting.dry_run import preview_slides
from patch_extraction.harvesting.workers import harvest_slides
from patch_extraction.packing.locks import one_after_another, only_harvest, only_part
from patch_extraction.packing.output_folder import kept_slides
from patch_extraction.packing.pack import DamagedTarError, discard, pack
from patch_extraction.reports.contact_sheets import save_contact_sheets
from patch_extraction.reports.html_report import write_report
from patch_extraction.reports.summary import summary, write_slide_table
from patch_extraction.slide_store.completed import (
    completed_slides,
    stored_record,
    tried_slides,
    with_current_columns,
)
from patch_extraction.slide_store.file_names import CONTACT_SHEET, REPORT, SLIDES_CSV, THUMBNAILS
from patch_extraction.slide_store.slide_record import Record
from shared.cli import as_plain, settings_text
from shared.errors import UserError
from shared.files import write_json
from shared.jobs.partition import Part
from shared.shards.format import INDEX
from shared.training.run_folder import CONFIG, PROVENANCE, provenance


def run_harvest(entries: Sequence[SlideEntry], config: HarvestConfig, counter: CellCounter) -> list[Record]:
    """Run a dry run, a part, the packing of parts or a whole harvest; return the records of its slides.

    Raises:
        UserError: existing files do not match this run, other processes use the folder, or there is no patch.
    """
    part = None if config.part is None else Part.of_text(config.part)
    mine = entries if part is None else part.share(entries)
    if config.dry_run:
        return preview_slides(mine, completed_slides(mine, config), config)
    if part is not None:
        with only_part(config.out, part):
            return _harvest_part(part, mine, entries, config, counter)
    with only_harvest(config.out):
        return _harvest(entries, config, counter)


def _harvest_part(
    part: Part,
    mine: Sequence[SlideEntry],
    entries: Sequence[SlideEntry],
    config: HarvestConfig,
    counter: CellCounter,
) -> list[Record]:
    """Harvest a part of the slides without packing."""
    kept_slides(entries, config, counter.name)  # refuses what packing would refuse
    with one_after_another(config.out):
        done = _start(mine, config)
    records = harvest_slides(mine, done, config, counter)
    print(f"\n{summary(records)}\n")
    print(f"part {part}: {len(records)} of {len(entries)} slides; after all parts: the same command with --pack")
    return records


def _harvest(entries: Sequence[SlideEntry], config: HarvestConfig, counter: CellCounter) -> list[Record]:
    """Harvest, or take what the parts have harvested; then pack and report."""
    kept = kept_slides(entries, config, counter.name)
    done = _start(entries, config)
    if config.pack:
        records = [*tried_slides(entries, done, config), *kept]
    else:
        records = [*harvest_slides(entries, done, config, counter), *kept]
    write_slide_table(config.out / SLIDES_CSV, records)
    if not any(record.kept for record in records):
        write_report(config.out, records, config)
        print(f"\n{summary(records)}\n", flush=True)
        raise UserError(f"no patch was harvested from {config.wsi_dir}; see the reasons above and in slides.csv")
    try:
        index = _pack(records, config, counter)
    except DamagedTarError as error:
        if config.pack:
            raise
        print(f"tars of {len(error.slide_ids)} slides are damaged; those slides are harvested again", flush=True)
        intact = {record.slide_id: record for record in records if record.slide_id not in error.slide_ids}
        records = [*harvest_slides(entries, intact, config, counter), *kept]
        write_slide_table(config.out / SLIDES_CSV, records)
        index = _pack(records, config, counter)
    save_contact_sheets(config.out, [record.slide_id for record in records])
    write_report(config.out, records, config)
    print(f"\n{summary(records)}\n")
    _print_places(config, index["samples"], len(index["shards"]))
    return records


def _pack(records: Sequence[Record], config: HarvestConfig, counter: CellCounter) -> dict[str, Any]:
    settings = common_settings(config, counter.name)
    return pack(config, records, settings)


def _start(entries: Sequence[SlideEntry], config: HarvestConfig) -> dict[str, Record]:
    """Begin or resume a harvest: write its settings; return the records of complete slides by slide id."""
    done = completed_slides(entries, config)
    if any(stored_record(config.out, entry) for entry in entries if entry.slide_id not in done):
        discard(config.out)  # --overwrite: existing shards must not pass for the result of the new settings
    try:
        common = dataclasses.replace(config, part=None, pack=False)  # the same for all parts
        write_json(config.out / CONFIG, as_plain(common))
        write_json(config.out / PROVENANCE, provenance())
        for entry in entries:
            if entry.slide_id in done:
                done[entry.slide_id] = with_current_columns(entry, done[entry.slide_id], config)
    except OSError as error:
        raise UserError(f"cannot write to {config.out}: {error.strerror}; choose another --out") from error
    print(f"settings (in {config.out}/config.json):\n{settings_text(config)}", flush=True)
    return done


def _print_places(config: HarvestConfig, samples: int, shards: int) -> None:
    out = config.out
    print(f"shards:    {samples} patches in {shards} of {out / 'shard-*.tar'}, listed in {out / INDEX}")
    print(f"pictures:  {out / REPORT}, {out / CONTACT_SHEET}, {out / THUMBNAILS}")
    print(f"slides:    {out / SLIDES_CSV}", flush=True)
