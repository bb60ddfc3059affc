"""`python -m patch_extraction --wsi-dir DIR`: from whole-slide images to shards of patches.

tissue -> candidates -> cell counter -> harvest (one slide -> one tar) -> pack (tars -> shuffled shards) -> report
"""

import json
import sys
from collections.abc import Sequence

import tyro

from patch_extraction.cell_counters import CellCounter, HaematoxylinCounter
from patch_extraction.config import HarvestConfig, Source, check, common_settings, overrides, pixel_settings
from patch_extraction.pack import INDEX, pack
from patch_extraction.pictures import THUMBNAILS, sheet_of_patches
from patch_extraction.report import summary, write_csv
from patch_extraction.slide_tar import FAILED, HARVESTED, Record, slide_id
from patch_extraction.workers import finished_slides, harvest_slides
from shared.atomic import atomic_path, write_json
from shared.command_line import UserError, as_plain, run
from shared.runs import provenance
from shared.slides import SUFFIXES, find_slides

NOTHING_FAILED, SOME_FAILED = 0, 3


def main() -> int:
    """Harvest, pack, report; returns 0, or 3 if some slides failed."""
    config = tyro.cli(HarvestConfig, prog="python -m patch_extraction")
    check(config)
    counter = HaematoxylinCounter()
    sources = find_sources(config, counter)
    done = finished_slides(sources, config)
    start_output(config)
    records = harvest_slides(sources, done, config, counter)
    write_csv(config.out / "slides.csv", records)
    if not any(record.status == HARVESTED for record in records):
        print(f"\n{summary(records)}\n", flush=True)
        raise UserError(f"no patch was harvested from {config.wsi_dir}; the reasons stand above and in slides.csv")
    index = pack(config.out, records, common_settings(config, counter.name), config.shard_size, config.seed)
    save_contact_sheet(config, counter)
    print(f"\n{summary(records)}\n")
    print_places(config, index["samples"], len(index["shards"]), records)
    return SOME_FAILED if any(record.status == FAILED for record in records) else NOTHING_FAILED


def find_sources(config: HarvestConfig, counter: CellCounter) -> list[Source]:
    """The slides below --wsi-dir, each with its biomarker and resolution override.

    Raises:
        UserError: there are none, or --slide-mpp names one that is not there.
    """
    paths = find_slides(config.wsi_dir)
    if not paths:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{config.wsi_dir} holds no slides; files with one of these endings are read: {endings}")
    names = [path.relative_to(config.wsi_dir).as_posix() for path in paths]
    mpps = overrides(config, names)
    sources = []
    for path, name in zip(paths, names, strict=True):
        folder = path.parent.name if "/" in name else ""
        biomarker = folder if config.biomarker is None else config.biomarker
        settings = pixel_settings(config, counter.name, biomarker, mpps.get(name))
        sources.append(Source(path, name, slide_id(name), biomarker, mpps.get(name), settings))
    return sources


def start_output(config: HarvestConfig) -> None:
    """Make the output folder and say there what was asked for."""
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "config.json", as_plain(config))
        write_json(config.out / "provenance.json", provenance())
    except OSError as error:
        raise UserError(f"cannot write to {config.out}: {error.strerror}; choose another --out") from error
    print(f"config: {json.dumps(as_plain(config), ensure_ascii=False)}", flush=True)


def save_contact_sheet(config: HarvestConfig, counter: CellCounter) -> None:
    """Write a picture of some of the patches; the first shard is a random choice of all."""
    sheet = sheet_of_patches(config.out / "shard-000000.tar", counter)
    with atomic_path(config.out / "contact_sheet.png") as temporary:
        sheet.save(temporary, format="PNG")


def print_places(config: HarvestConfig, samples: int, shards: int, records: Sequence[Record]) -> None:
    """Say where everything is."""
    failed = sum(record.status == FAILED for record in records)
    out = config.out
    print(f"shards:    {samples} patches in {shards} of {out / 'shard-*.tar'}, listed in {out / INDEX}")
    print(f"pictures:  {out / 'contact_sheet.png'}, {out / THUMBNAILS}")
    print(f"slides:    {out / 'slides.csv'}")
    if failed:
        print(
            f"{failed} of {len(records)} slides failed (see above); mend them and start the same command again",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(main)
