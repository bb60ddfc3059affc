"""`python -m tests.benchmarks.cell_counters DATA [COUNTER...]`: cell counters on annotated fields.

DATA is a folder with BRCA-M2C, CD138, CoNSeP, DSB2018, HGSC, hard_fields and slides. Rows named `held_out/...` are
fields of slides (of HGSC: halves of fields) that the shipped detector was not trained on; of CD138, CoNSeP and the
hard fields it has seen none. Hard fields have no annotation: their rows say how many cells are counted, and the
sharpness. The first rows are ratios of F1, of the shipped detector to the classical counter. COUNTER: further
counters, as --counter of a harvest.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from patch_extraction.count_check import Quality, annotated_squares, measure
from patch_extraction.counters.base import CLASSICAL, CellCounter, choose_counter
from patch_extraction.harvesting.focus import focus
from shared.weights.shipped import NUCLEI
from shared.wsi.rgb import open_rgb
from tests.benchmarks import nuclei_fields
from tests.benchmarks.measuring import write

OUT = Path(__file__).with_suffix(".csv")
PATCH_UM, MIN_CELLS = 128.0, 30
# um/px of the folders' images; the coordinates of all sets but HGSC count px from 0.
SETS = {"BRCA-M2C/train": 0.5, "CD138/test": 0.25, "CD138/test_rater2": 0.25, "CD138/train": 0.25}
SETS |= {"CoNSeP/test": 0.5, "CoNSeP/train": 0.5}
HELD_OUT = dict.fromkeys(("held_out/BRCA-M2C", "held_out/DSB2018", "held_out/HGSC"), nuclei_fields.MPP)
HARD, HARD_MPP = "hard_fields", 0.25
RATIO = f"{NUCLEI} / classical"
COLUMNS = (*(field.name for field in dataclasses.fields(Quality)), "duplicates", "counted", "focus")
NEAR_UM = 1.5  # two cells at this distance are one


def main(data: tyro.conf.Positional[Path], further: tyro.conf.Positional[tuple[str, ...]] = ()) -> None:
    """Measure the counters on all sets.

    Args:
        data: The folder.
        further: Counters beside the classical one and the shipped detector.
    """
    counters = [choose_counter(word) for word in (CLASSICAL[0], NUCLEI, *further)]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        nuclei_fields.main(data, Path(name))
        images = Path(name) / "CD138" / "test_rater2"
        images.mkdir(parents=True)
        (images / "images").symlink_to((data / "CD138" / "test" / "images").resolve())
        (images / "points").symlink_to((data / "CD138" / "test_rater2" / "points").resolve())
        for each, mpp in (SETS | HELD_OUT).items():
            root = Path(name) if each in HELD_OUT or each.endswith("rater2") else data
            rows += compared(root, each, mpp, counters)
    rows += [hard_field(path, counter) for path in sorted((data / HARD).glob("*.png")) for counter in counters]
    write(OUT, sorted(rows, key=lambda row: row["counter"] != RATIO))


def compared(root: Path, name: str, mpp: float, counters: Sequence[CellCounter]) -> list[dict[str, object]]:
    """Measure counters on one set, and the ratio of the first two's F1."""
    squares = list(annotated_squares(root / name, mpp, PATCH_UM, 0.0 if "HGSC" in name else 0.5))
    found = [measure(name, squares, mpp, counter, MIN_CELLS) for counter in counters]
    rows: list[dict[str, object]] = [{"set": name, "counter": RATIO, "f1": round(found[1].f1 / found[0].f1, 3)}]
    for counter, quality in zip(counters, found, strict=True):
        points = [counter.find(image_HW3, mpp) for image_HW3, _ in squares]
        rows.append(dataclasses.asdict(quality) | {"duplicates": duplicates(points, NEAR_UM / mpp)})
    return [dict.fromkeys(COLUMNS, "") | row for row in rows]


def duplicates(found: Sequence[np.ndarray], radius: float) -> float:
    """Return the share of points with another one within `radius` px."""
    doubled = 0
    for points_N2 in found:
        distance_NN = np.hypot(*(points_N2[:, None] - points_N2[None]).transpose(2, 0, 1))
        doubled += int(((distance_NN < radius).sum(axis=1) > 1).sum())
    return round(doubled / max(1, sum(map(len, found))), 4)


def hard_field(path: Path, counter: CellCounter) -> dict[str, object]:
    """Count the cells of a field without annotation."""
    image_HW3 = np.asarray(open_rgb(path))
    row = {"set": f"{HARD}/{path.stem}", "counter": counter.name, "mpp": HARD_MPP, "squares": 1}
    counted = {"counted": len(counter.find(image_HW3, HARD_MPP)), "focus": round(focus(image_HW3, HARD_MPP), 3)}
    return dict.fromkeys(COLUMNS, "") | row | counted


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
