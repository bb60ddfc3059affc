"""From slides to shards: harvest (one slide, one tar), pack (tars to shuffled shards), report."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from patch_extraction.config import HarvestConfig, SlideEntry, common_settings
from patch_extraction.counters.base import CellCounter
from patch_extraction.harvesting.workers import finished_slides, harvest_slides
from patch_extraction.packing.locks import one_after_another, only_part
from patch_extraction.packing.output_folder import harvested_slides, kept_slides
from patch_extraction.packing.pack import INDEX, DamagedTarError, discard, pack
from patch_extraction.reports.html_report import write_report
from patch_extraction.reports.pictures import save_contact_sheets
from patch_extraction.reports.summary import summary, write_csv
from patch_extraction.slide_store.file_names import CONTACT_SHEET, REPORT, SLIDES_CSV, THUMBNAILS
from patch_extraction.slide_store.slide_record import Record, finished
from shared.cli import as_plain, settings_text
from shared.errors import UserError
from shared.files import write_json
from shared.jobs.partition import Part
from shared.training.run_folder import CONFIG, PROVENANCE, provenance


def harvest_part(
    part: Part, sources: Sequence[SlideEntry], config: HarvestConfig, counter: CellCounter
) -> list[Record]:
    """Harvest a part of the slides, other tasks being at the others; the records of the part.

    Raises:
        UserError: what is there already does not go with this run, or others are at the same slides.
    """
    mine = part.share(sources)
    with only_part(config.out, part):
        kept_slides(sources, config, counter.name)  # the same refusals as of the whole
        with one_after_another(config.out):
            done = start(mine, config)
        records = harvest_slides(mine, done, config, counter)
    print(f"\n{summary(records)}\n")
    print(f"part {part}: {len(records)} of {len(sources)} slides; after all parts: the same command with --pack")
    return records


def harvest(sources: Sequence[SlideEntry], config: HarvestConfig, counter: CellCounter) -> list[Record]:
    """Fill the output folder; the records of all slides whose patches are there or should be.

    Raises:
        UserError: what is there already does not go with this run, or there is not one patch.
    """
    kept = kept_slides(sources, config, counter.name)
    done = start(sources, config)
    if config.pack:
        records = [*harvested_slides(sources, done, config), *kept]
    else:
        records = [*harvest_slides(sources, done, config, counter), *kept]
    write_csv(config.out / SLIDES_CSV, records)
    if not any(record.kept for record in records):
        write_report(config.out, records, config)
        print(f"\n{summary(records)}\n", flush=True)
        raise UserError(f"no patch was harvested from {config.wsi_dir}; the reasons stand above and in slides.csv")
    try:
        index = pack_all(records, config, counter)
    except DamagedTarError as error:
        if config.pack:
            raise
        print(f"tars of {len(error.slide_ids)} slides are damaged; those slides are harvested again", flush=True)
        intact = {record.slide_id: record for record in records if record.slide_id not in error.slide_ids}
        records = [*harvest_slides(sources, intact, config, counter), *kept]
        write_csv(config.out / SLIDES_CSV, records)
        index = pack_all(records, config, counter)
    save_contact_sheets(config.out, [record.slide_id for record in records], counter)
    write_report(config.out, records, config)
    print(f"\n{summary(records)}\n")
    print_places(config, index["samples"], len(index["shards"]))
    return records


def pack_all(records: Sequence[Record], config: HarvestConfig, counter: CellCounter) -> dict[str, Any]:
    """Pack the slides' tars as the configuration asks for; the index."""
    settings = common_settings(config, counter.name)
    return pack(config.out, records, settings, config.shard_size, config.seed, config.add_shards)


def start(sources: Sequence[SlideEntry], config: HarvestConfig) -> dict[str, Record]:
    """Begin with the output folder, or go on with it; the records of the slides that are done, by slide id.

    Raises:
        UserError: some were harvested with other settings, or the folder cannot be written.
    """
    done = finished_slides(sources, config)
    if any(finished(config.out, source) for source in sources if source.slide_id not in done):
        discard(config.out)  # --overwrite: what was packed must not pass for the result of the new settings
    start_output(config)
    return done


def start_output(config: HarvestConfig) -> None:
    """Say in the output folder, and here, what was asked for."""
    try:
        asked = dataclasses.replace(config, part=None, pack=False)  # what all parts have in common
        write_json(config.out / CONFIG, as_plain(asked))
        write_json(config.out / PROVENANCE, provenance())
    except OSError as error:
        raise UserError(f"cannot write to {config.out}: {error.strerror}; choose another --out") from error
    print(f"settings (in {config.out}/config.json):\n{settings_text(config)}", flush=True)


def print_places(config: HarvestConfig, samples: int, shards: int) -> None:
    """Say where everything is."""
    out = config.out
    print(f"shards:    {samples} patches in {shards} of {out / 'shard-*.tar'}, listed in {out / INDEX}")
    print(f"pictures:  {out / REPORT}, {out / CONTACT_SHEET}, {out / THUMBNAILS}")
    print(f"slides:    {out / SLIDES_CSV}", flush=True)
