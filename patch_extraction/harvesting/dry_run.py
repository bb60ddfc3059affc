"""`--dry-run`: every slide is opened, nothing is read or written; what a harvest would make of it."""

from collections.abc import Callable, Mapping, Sequence

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.harvesting.slide_harvest import refuse_resolution
from patch_extraction.harvesting.workers import each
from patch_extraction.reports.summary import MOST_ROWS
from patch_extraction.slide_store.fingerprint import is_copy
from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, Record
from shared.errors import UserError
from shared.reporting.tables import table
from shared.training.run_folder import progress
from shared.wsi.slide import Slide, SlideError

TO_DO, DONE = "to do", "done"


def preview_slides(
    sources: Sequence[SlideEntry], done: Mapping[str, Record], config: HarvestConfig
) -> list[Record]:
    """Print what would become of every slide; their records, with status `to do`, `duplicate` or `failed`.

    Raises:
        UserError: all would fail.
    """
    todo = [source for source in sources if source.slide_id not in done]
    records: dict[str, Record] = {}
    with progress(len(todo), "slide", description="opening") as bar:
        for record, _ in each(_Look(config), todo, config):
            if record is not None:
                records[record.slide_id] = record
                bar.update()
    found = [records.get(source.slide_id) or done[source.slide_id] for source in sources]
    _print(found, done, config)
    if found and all(record.status == FAILED for record in found):
        raise UserError(f"none of the slides in {config.wsi_dir} can be harvested; the reasons stand above")
    return found


class _Look:
    """Opens a slide; called in a process of its own, as a file may hang."""

    def __init__(self, config: HarvestConfig) -> None:
        self._config = config

    def __call__(self, source: SlideEntry, tell: Callable[[int], None] | None = None) -> Record:
        name = (source.name, source.slide_id, source.biomarker)
        if source.original is not None and is_copy(source.path, source.original.path):
            return Record(*name, DUPLICATE, f"the same file as {source.original.name}")
        try:
            with Slide(source.path, source.slide_mpp, self._config.trust_objective, self._config.reader) as slide:
                mpp, said_by = slide.mpp, slide.resolution.source
                refuse_resolution(slide, self._config)
        except (SlideError, OSError) as error:
            return Record(*name, FAILED, str(error))
        size = source.path.stat().st_size
        return Record(*name, TO_DO, "", slide_mpp=round(mpp, 6), mpp_source=said_by, source_bytes=size)


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
    print(f"\n{table(header, rows[:MOST_ROWS])}")
    if len(rows) > MOST_ROWS:
        print(f"... and {len(rows) - MOST_ROWS} more slides")
    for record in records:
        if record.status == FAILED:
            print(f"would fail: {record.reason}")
    counts = [(word, sum(value == word for value in status.values())) for word in (DONE, TO_DO, DUPLICATE, FAILED)]
    told = ", ".join(f"{count} {word}" for word, count in counts if count)
    most = f"at most {config.max_patches} patches of {config.patch_size * config.patch_mpp:g} um a slide"
    print(f"\n{len(records)} slides: {told}; {most}, into {config.out}. Nothing was written.")
