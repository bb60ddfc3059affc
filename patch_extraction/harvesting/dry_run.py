"""`--dry-run`: open every slide and report what a harvest would do; nothing is written."""

from collections.abc import Callable, Mapping, Sequence

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.harvesting.slide_harvest import require_resolution
from patch_extraction.harvesting.workers import run_isolated
from patch_extraction.reports.summary import MAX_ROWS
from patch_extraction.slide_store.fingerprint import is_copy
from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, Record
from shared.errors import UserError
from shared.reporting.tables import table
from shared.training.run_folder import progress
from shared.wsi.slide import Slide, SlideError

TO_DO, DONE = "to do", "done"


def preview_slides(
    entries: Sequence[SlideEntry], done: Mapping[str, Record], config: HarvestConfig
) -> list[Record]:
    """Print what a harvest would do with every slide; return records of status `to do`, `duplicate` or `failed`.

    Raises:
        UserError: all slides would fail.
    """
    todo = [entry for entry in entries if entry.slide_id not in done]
    records: dict[str, Record] = {}
    with progress(len(todo), "slide", description="opening") as bar:
        for record, _ in run_isolated(_Preview(config), todo, config):
            if record is not None:
                records[record.slide_id] = record
                bar.update()
    found = [records.get(entry.slide_id) or done[entry.slide_id] for entry in entries]
    _print(found, done, config)
    if found and all(record.status == FAILED for record in found):
        raise UserError(f"none of the slides in {config.wsi_dir} can be harvested; see the reasons above")
    return found


class _Preview:
    """Opens a slide, in a process of its own because files may hang."""

    def __init__(self, config: HarvestConfig) -> None:
        self._config = config

    def __call__(self, entry: SlideEntry, on_progress: Callable[[int], None] | None = None) -> Record:
        name = (entry.name, entry.slide_id, entry.biomarker)
        if entry.original is not None and is_copy(entry.path, entry.original.path):
            return Record(*name, DUPLICATE, f"the same file as {entry.original.name}")
        try:
            with Slide(entry.path, entry.slide_mpp, self._config.trust_objective, self._config.reader) as slide:
                mpp, source = slide.mpp, slide.resolution.source
                require_resolution(slide, self._config)
        except (SlideError, OSError) as error:
            return Record(*name, FAILED, str(error))
        size = entry.path.stat().st_size
        return Record(*name, TO_DO, "", slide_mpp=round(mpp, 6), mpp_source=source, source_bytes=size)


def _print(records: Sequence[Record], done: Mapping[str, Record], config: HarvestConfig) -> None:
    status = {record.slide_id: DONE if record.slide_id in done else record.status for record in records}
    header = ("slide", "biomarker", "would be", "um/px", "stated by", "MB", "patches")
    rows = [
        (
            record.slide,
            record.biomarker,
            status[record.slide_id],
            "" if record.slide_mpp is None else record.slide_mpp,
            record.mpp_source,
            round(record.source_bytes / 1e6, 1) if record.source_bytes else "",
            record.kept if record.slide_id in done else "",
        )
        for record in records
    ]
    print(f"\n{table(header, rows[:MAX_ROWS])}")
    if len(rows) > MAX_ROWS:
        print(f"... and {len(rows) - MAX_ROWS} more slides")
    for record in records:
        if record.status == FAILED:
            print(f"would fail: {record.reason}")
    counts = [(word, sum(value == word for value in status.values())) for word in (DONE, TO_DO, DUPLICATE, FAILED)]
    summary = ", ".join(f"{count} {word}" for word, count in counts if count)
    limit = f"at most {config.max_patches} patches of {config.patch_size * config.patch_mpp:g} um a slide"
    print(f"\n{len(records)} slides: {summary}; {limit}, into {config.out}. Nothing was written.")
