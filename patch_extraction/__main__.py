"""`python -m patch_extraction --wsi-dir DIR`: from whole-slide images to shards of patches."""

import sys

from patch_extraction.config import HarvestConfig, validate
from patch_extraction.counters.base import choose_counter, require_working
from patch_extraction.harvesting.slide_list import find_entries
from patch_extraction.launch import LAUNCH, harvest_in_slurm
from patch_extraction.packing.output_folder import require_own_folder
from patch_extraction.packing.verify import check_shards
from patch_extraction.pipeline import run_harvest
from patch_extraction.slide_store.file_names import SLIDES
from patch_extraction.slide_store.slide_record import FAILED
from shared.cli import cli_beside, run
from shared.errors import NOTHING_FAILED, SOME_FAILED
from shared.signals import leave_when_told
from shared.wsi.slide_files import SlideListing, by_ending, list_slides


def main() -> int:
    """Harvest, pack and report.

    Returns:
        0, or 3 if slides failed or lie in folders that cannot be listed. Signals to stop end the process with 85.
    """
    config, launch = cli_beside(HarvestConfig, LAUNCH, "python -m patch_extraction")
    if config.check is not None:
        check_shards(config.check)
        return NOTHING_FAILED
    validate(config)
    leave_when_told(lambda: f"with {len(list((config.out / SLIDES).glob('*.json')))} slides done")
    counter = choose_counter(config.counter, config.detector, config.leave_out_ink)
    if not config.dry_run and not config.pack:
        require_working(counter, config.patch_mpp, config.patch_size)
    listing = list_slides(config.wsi_dir)
    entries = find_entries(config, counter, listing)
    require_own_folder(config)
    if launch.launcher == "slurm" and not config.dry_run:
        return harvest_in_slurm(len(entries), config, launch)
    records = run_harvest(entries, config, counter)
    failed = sum(record.status == FAILED for record in records)
    if failed:
        again = "correct them and run the same command again"
        print(f"{failed} of {len(records)} slides failed (see above); {again}", file=sys.stderr)
    report_left_out(listing, config)
    return SOME_FAILED if failed or listing.unlisted else NOTHING_FAILED


def report_left_out(listing: SlideListing, config: HarvestConfig) -> None:
    """Print files that are not slides, and folders that cannot be listed."""
    out = config.out.absolute()
    passed_over = [path for path in listing.passed_over if out not in path.absolute().parents]
    if passed_over:
        print(f"passed over: {len(passed_over)} files ({by_ending(passed_over)})")
    if listing.unlisted:
        print(f"folders left out: {len(listing.unlisted)} ({listing.unlisted[0]})", file=sys.stderr)


if __name__ == "__main__":
    run(main)
