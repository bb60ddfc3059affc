"""`python -m patch_extraction --wsi-dir DIR`: from whole-slide images to shards of patches.

tissue -> candidates -> cell counter -> harvest (one slide -> one tar) -> pack (tars -> shuffled shards) -> report
"""

import sys

import tyro

from patch_extraction.config import HarvestConfig, check
from patch_extraction.counters.base import choose_counter
from patch_extraction.harvesting.dry_run import preview_slides
from patch_extraction.harvesting.slide_list import find_sources
from patch_extraction.harvesting.workers import finished_slides
from patch_extraction.launch import LAUNCH, harvest_in_slurm
from patch_extraction.packing.locks import only_harvest
from patch_extraction.packing.output_folder import refuse_foreign
from patch_extraction.packing.verify import CheckConfig, check_shards
from patch_extraction.pipeline import harvest, harvest_part
from patch_extraction.slide_store.slide_record import FAILED
from shared.cli import cli_beside, run
from shared.errors import NOTHING_FAILED, SOME_FAILED
from shared.jobs.partition import Part
from shared.signals import leave_when_told
from shared.wsi.slide_files import SlideListing, by_ending, list_slides


def main() -> int:
    """Harvest, pack, report; returns 0, or 3 if some slides failed or lie in folders that cannot be listed.

    Told to stop by a signal, it leaves with 85 what has been done.
    """
    if any(word.partition("=")[0] == "--check" for word in sys.argv[1:]):
        check_shards(tyro.cli(CheckConfig, prog="python -m patch_extraction").check)
        return NOTHING_FAILED
    config, launch = cli_beside(HarvestConfig, LAUNCH, "python -m patch_extraction")
    check(config)
    leave_when_told(lambda: f"with {len(list(config.out.glob('slides/*.json')))} slides done")
    counter = choose_counter(config.counter, config.detector, config.patch_mpp, config.patch_size)
    listing = list_slides(config.wsi_dir)
    sources = find_sources(config, counter, listing)
    refuse_foreign(config)
    if config.dry_run:
        mine = sources if config.part is None else Part.of_text(config.part).share(sources)
        records = preview_slides(mine, finished_slides(mine, config), config)
    elif launch.launcher == "slurm":
        return harvest_in_slurm(len(sources), config, launch)
    elif config.part is not None:
        records = harvest_part(Part.of_text(config.part), sources, config, counter)
    else:
        with only_harvest(config.out):
            records = harvest(sources, config, counter)
    failed = sum(record.status == FAILED for record in records)
    if failed:
        again = "mend them and start the same command again"
        print(f"{failed} of {len(records)} slides failed (see above); {again}", file=sys.stderr)
    report_left_out(listing, config)
    return SOME_FAILED if failed or listing.unlisted else NOTHING_FAILED


def report_left_out(listing: SlideListing, config: HarvestConfig) -> None:
    """Print what below --wsi-dir was not harvested and is no failed slide."""
    passed_over = [path for path in listing.passed_over if config.out not in path.parents]
    if passed_over:
        print(f"passed over: {len(passed_over)} files ({by_ending(passed_over)})")
    if listing.unlisted:
        print(f"folders left out: {len(listing.unlisted)} ({listing.unlisted[0]})", file=sys.stderr)


if __name__ == "__main__":
    run(main)
