"""`python -m tests.benchmarks.nuclei_fields DATA OUT`: fields for the detector that counts cells.

Writes `OUT/fields` (train, val) for `python -m finetune nuclei`, and `OUT/held_out/SET` for
`python -m patch_extraction.count_check`. A slide's fields stay together. Licences: BRCA-M2C BSD-3, DSB2018 CC0.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

MPP = 0.5
# The 2018 Data Science Bowl says no resolution. Its lymphocytes are some 28 px wide, 7 um at 0.25 um/px.
SHRINK = {"BRCA-M2C/train": 1, "DSB2018/all": 2}
# Of ten slides (or fields, where no slide is known) so many are held out, and so many validate.
HELD_OUT, VALIDATION = 2, 1
# Small fields are laid side by side, two by two.
MOSAIC = 2
Field = tuple[np.ndarray, np.ndarray]


def fields_of(folder: Path, shrink: int) -> dict[str, dict[str, Field]]:
    """Per split: name -> image at 0.5 um/px and its points, as they stand (BRCA-M2C counts px: 0.25 um off)."""
    splits: dict[str, dict[str, Field]] = {"train": {}, "val": {}, "held_out": {}}
    for path in sorted((folder / "images").glob("*.png")):
        image = Image.open(path).convert("RGB")
        with (folder / "points" / f"{path.stem}.csv").open(newline="", encoding="utf-8") as file:
            points = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
        splits[_split(path.stem)][path.stem] = (
            np.asarray(image.reduce(shrink)),
            np.array(points).reshape(-1, 2) / shrink,
        )
    return splits


def _split(name: str) -> str:
    """By the slide, so that fields of one never lie in two splits."""
    slide = "-".join(name.split("-")[:3]) if name.startswith("TCGA") else name
    tenth = int(hashlib.sha256(slide.encode()).hexdigest(), 16) % 10
    return "held_out" if tenth < HELD_OUT else "val" if tenth < HELD_OUT + VALIDATION else "train"


def mosaics(fields: Sequence[Field]) -> Iterator[Field]:
    """Fields of one size, laid out in squares; those left over at the end stay out."""
    count = MOSAIC**2
    for start in range(0, len(fields) - count + 1, count):
        group = fields[start : start + count]
        height, width = group[0][0].shape[:2]
        corners = [(width * (n % MOSAIC), height * (n // MOSAIC)) for n in range(count)]
        images = [image for image, _ in group]
        rows = [np.hstack(images[n : n + MOSAIC]) for n in range(0, count, MOSAIC)]
        moved = [points + corner for (_, points), corner in zip(group, corners, strict=True)]
        yield np.vstack(rows), np.vstack(moved)


def save(root: Path, name: str, field: Field) -> None:
    """One field as images/NAME.png and points/NAME.csv."""
    for folder in (root / "images", root / "points"):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(field[0]).save(root / "images" / f"{name}.png")
    lines = ["x,y,class", *(f"{x:.2f},{y:.2f},1" for x, y in field[1])]
    (root / "points" / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(data: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Write the fields.

    Args:
        data: Folder with BRCA-M2C/train and DSB2018/all, each with images/ and points/.
        out: Folder to write to.
    """
    for name, shrink in SHRINK.items():
        splits, prefix = fields_of(data / name, shrink), name.partition("/")[0]
        for split, fields in splits.items():
            root = out / "held_out" / prefix if split == "held_out" else out / "fields" / split
            if shrink > 1:
                fields = {f"mosaic_{n:02d}": each for n, each in enumerate(mosaics(list(fields.values())))}
            for stem, field in fields.items():
                save(root, f"{prefix}_{stem}", field)
        print(f"{prefix}: " + ", ".join(f"{len(each)} {split}" for split, each in splits.items()))
    for folder in (out / "fields", out / "held_out"):
        about = {"mpp": MPP, "classes": [{"name": "nucleus", "value": 1}], "origin": "corner"}
        (folder / "dataset.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
