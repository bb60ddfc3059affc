"""`python -m tests.benchmarks.cell_counters DATA`: the classical counter and the detector on annotated fields.

DATA is a folder with BRCA-M2C, CD138, CoNSeP and DSB2018. Rows named `held_out/...` are fields of slides that the
detector was not trained on; of CD138 and CoNSeP it has seen none. The first rows are ratios of the two counters.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro

from patch_extraction.count_check import Quality, annotated_squares, measure
from patch_extraction.counters.base import CLASSICAL, SHIPPED, CellCounter, choose_counter
from tests.benchmarks import nuclei_fields
from tests.benchmarks.measuring import write

OUT = Path(__file__).with_suffix(".csv")
PATCH_UM, MIN_CELLS = 128.0, 30
# um/px of the folders' images; the coordinates of all sets count px from 0.
SETS = {"BRCA-M2C/train": 0.5, "CD138/test": 0.25, "CD138/train": 0.25, "CoNSeP/test": 0.5, "CoNSeP/train": 0.5}
HELD_OUT = dict.fromkeys(("held_out/BRCA-M2C", "held_out/DSB2018"), nuclei_fields.MPP)
TO_CORNER = 0.5  # px


def main(data: tyro.conf.Positional[Path]) -> None:
    """Measure both counters on all sets.

    Args:
        data: The folder.
    """
    finest = min(SETS.values())
    counters = [choose_counter(word, None, finest, round(PATCH_UM / finest)) for word in (CLASSICAL[0], SHIPPED)]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        nuclei_fields.main(data, Path(name))
        for root, sets in ((data, SETS), (Path(name), HELD_OUT)):
            for each, mpp in sets.items():
                rows += compared(root, each, mpp, counters)
    write(OUT, sorted(rows, key=lambda row: row["counter"] != "detector / classical"))


def compared(root: Path, name: str, mpp: float, counters: Sequence[CellCounter]) -> list[dict[str, object]]:
    """Both counters on one set, and the ratio of their F1."""
    squares = list(annotated_squares(root / name, mpp, PATCH_UM, TO_CORNER))
    classical, detector = (measure(name, squares, mpp, counter, MIN_CELLS) for counter in counters)
    columns = [field.name for field in dataclasses.fields(Quality)]
    ratio = {"set": name, "counter": "detector / classical", "f1": round(detector.f1 / classical.f1, 3)}
    return [dict.fromkeys(columns, "") | ratio, *map(dataclasses.asdict, (classical, detector))]


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
