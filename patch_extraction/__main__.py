"""`python -m patch_extraction --wsi-dir DIR`: from whole-slide images to shards of patches.

tissue -> candidates -> cell counter -> harvest (one slide -> one tar) -> pack (tars -> shuffled shards) -> report
"""

import dataclasses
import sys
from collections.abc import Sequence

import tyro

from patch_extraction.cell_counters import CellCounter, HaematoxylinCounter
from patch_extraction.config import HarvestConfig, Source, check, common_settings, overrides, pixel_settings
from patch_extraction.locks import one_after_another, only_harvest, only_part
from patch_extraction.output import harvested_slides, kept_slides, refuse_foreign
from patch_extraction.pack import INDEX, discard, pack
from patch_extraction.parts import Part
from patch_extraction.pictures import THUMBNAILS, sheet_of_patches
from patch_extraction.report import summary, write_csv
from patch_extraction.slide_tar import FAILED, Record, finished, slide_id
from patch_extraction.workers import finished_slides, harvest_slides
from shared.atomic import atomic_path, write_json
from shared.command_line import UserError, as_plain, run, settings_text
from shared.runs import provenance
from shared.slides import SUFFIXES, find_slides, printable

NOTHING_FAILED, SOME_FAILED = 0, 3


def main() -> int:
    """Harvest, pack, report; returns 0, or 3 if some slides failed or lie in folders that cannot be listed."""
    config = tyro.cli(HarvestConfig, prog="python -m patch_extraction")
    check(config)
    counter = HaematoxylinCounter()
    hidden: list[str] = []
    sources = find_sources(config, counter, hidden)
    refuse_foreign(config.out)
    if config.part is not None:
        records = harvest_part(Part.of_text(config.part), sources, config, counter)
    else:
        with only_harvest(config.out):
            records = harvest(sources, config, counter)
    failed = sum(record.status == FAILED for record in records)
    if failed:
        again = "mend them and start the same command again"
        print(f"{failed} of {len(records)} slides failed (see above); {again}", file=sys.stderr)
    if hidden:
        print(f"folders left out: {len(hidden)} ({hidden[0]})", file=sys.stderr)
    return SOME_FAILED if failed or hidden else NOTHING_FAILED


def find_sources(config: HarvestConfig, counter: CellCounter, hidden: list[str] | None = None) -> list[Source]:
    """The slides below --wsi-dir, each with its biomarker and resolution override.

    Args:
        config: What is asked for.
        counter: Its name is part of the settings.
        hidden: Takes a sentence for every folder that cannot be listed.

    Raises:
        UserError: there are none, or --slide-mpp names one that is not there.
    """
    paths = find_slides(config.wsi_dir, hidden)
    if not paths:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{config.wsi_dir} holds no slides; files with one of these endings are read: {endings}")
    names = [printable(path.relative_to(config.wsi_dir).as_posix()) for path in paths]
    mpps = overrides(config, names)
    sources = []
    for path, name in zip(paths, names, strict=True):
        folder = name.split("/")[-2] if "/" in name else ""
        biomarker = folder if config.biomarker is None else config.biomarker
        settings = pixel_settings(config, counter.name, biomarker, mpps.get(name))
        sources.append(Source(path, name, slide_id(name), biomarker, mpps.get(name), settings))
    return sources


def harvest_part(
    part: Part, sources: Sequence[Source], config: HarvestConfig, counter: CellCounter
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


def harvest(sources: Sequence[Source], config: HarvestConfig, counter: CellCounter) -> list[Record]:
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
    write_csv(config.out / "slides.csv", records)
    if not any(record.kept for record in records):
        print(f"\n{summary(records)}\n", flush=True)
        raise UserError(f"no patch was harvested from {config.wsi_dir}; the reasons stand above and in slides.csv")
    index = pack(config.out, records, common_settings(config, counter.name), config.shard_size, config.seed)
    save_contact_sheet(config, counter)
    print(f"\n{summary(records)}\n")
    print_places(config, index["samples"], len(index["shards"]))
    return records


def start(sources: Sequence[Source], config: HarvestConfig) -> dict[str, Record]:
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
        write_json(config.out / "config.json", as_plain(asked))
        write_json(config.out / "provenance.json", provenance())
    except OSError as error:
        raise UserError(f"cannot write to {config.out}: {error.strerror}; choose another --out") from error
    print(f"settings (in {config.out}/config.json):\n{settings_text(config)}", flush=True)


def save_contact_sheet(config: HarvestConfig, counter: CellCounter) -> None:
    """Write a picture of some of the patches; the first shard is a random choice of all."""
    sheet = sheet_of_patches(config.out / "shard-000000.tar", counter)
    with atomic_path(config.out / "contact_sheet.png") as temporary:
        sheet.save(temporary, format="PNG")


def print_places(config: HarvestConfig, samples: int, shards: int) -> None:
    """Say where everything is."""
    out = config.out
    print(f"shards:    {samples} patches in {shards} of {out / 'shard-*.tar'}, listed in {out / INDEX}")
    print(f"pictures:  {out / 'contact_sheet.png'}, {out / THUMBNAILS}")
    print(f"slides:    {out / 'slides.csv'}", flush=True)


if __name__ == "__main__":
    run(main)
