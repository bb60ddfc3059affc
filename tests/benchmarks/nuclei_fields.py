"""`python -m tests.benchmarks.nuclei_fields DATA OUT`: fields for the detector that counts cells.

Writes `OUT/fields` (train, val) for `python -m finetune nuclei`, and `OUT/held_out/SET` for
`python -m patch_extraction.count_check`. A slide's fields stay together. Licences: BRCA-M2C and HGSC BSD-3,
DSB2018 CC0, the slides MIT.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter

from shared.samples.specimen import section
from shared.wsi.slide import Slide
from shared.wsi.stains import DAB, QUPATH_HAEMATOXYLIN, density_table, unmixing_matrix

MPP = 0.5
# The 2018 Data Science Bowl says no resolution. Its lymphocytes are some 28 px wide, 7 um at 0.25 um/px.
SHRINK = {"BRCA-M2C/train": 1, "DSB2018/all": 2}
# Of ten slides (or fields, where no slide is known) so many are held out, and so many validate.
HELD_OUT, VALIDATION = 2, 1
# Small fields are laid side by side, two by two.
MOSAIC = 2
# No resolution is stated for HGSC; its lymphocytes are 15 to 17 px wide. Left halves train, right halves measure.
HGSC_MPP, HGSC_PARTS = 0.47, 3
# Slides in which brown is never a nucleus: um/px where none is stated, and left and top px of squares that were
# looked at. The first of each slide validates.
Places = Mapping[str, tuple[float | None, Sequence[tuple[int, int]]]]
# fmt: off
SILVER: Places = {
    "CD34_ihc_40x.svs": (None, (
        (22000, 6800), (1500, 4300), (5200, 5200), (9000, 5600), (15500, 5600), (19300, 6000), (25000, 8200),
        (26500, 6200), (12000, 6000), (17500, 6500),
    )),
    "chromogranin_ihc_40x_region.svs": (None, (
        (7000, 2900), (3500, 3300), (5000, 6700), (5200, 8700), (6200, 9300), (3400, 7300), (6200, 2400),
        (1900, 9500), (4000, 10100), (7800, 3900),
    )),
    "keratin_ihc_no_resolution_region.tiff": (0.5, ((5200, 1200), (4000, 4400), (5900, 4800), (800, 3700))),
}
# fmt: on
EMPTY: Places = {
    "CD34_ihc_40x.svs": (None, ((13200, 300), (9500, 2200), (23900, 1400), (3700, 7900))),
    "chromogranin_ihc_40x_region.svs": (None, ((500, 4000), (8000, 300))),
}
SQUARE_UM = 200.0
# Spots of nuclei in the haematoxylin of these slides: um, optical density; brown ones are none.
FINE_UM, COARSE_UM, APART_UM, MIN_SPOT, MIN_DAB, DAB_SHARE = 1.7, 3.1, 2.0, 0.02, 0.1, 0.45
SECTIONS = 8  # of procedural tissue with brown and blue nuclei
# Fields out of focus, without cells to learn: every so many of the others, blurred by um.
BLURRED_OF, BLUR_UM = 6, (2.5, 4.0)
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


def hgsc_fields(folder: Path) -> Iterator[tuple[str, str, Field]]:
    """Yield split, name and field: parts of the images' left halves to train, their right halves to measure."""
    for path in sorted((folder / "images").glob("*.png")):
        image = Image.open(path).convert("RGB")
        with (folder / "points" / f"{path.stem}.csv").open(newline="", encoding="utf-8") as file:
            points_N2 = np.array([(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)])
        half, part = image.width // 2, image.height // HGSC_PARTS
        boxes = [("train", (0, n * part, half, (n + 1) * part)) for n in range(HGSC_PARTS)]
        for n, (split, box) in enumerate([*boxes, ("held_out", (half, 0, image.width, image.height))]):
            inside_N = ((points_N2 >= box[:2]) & (points_N2 < box[2:])).all(axis=1)
            size = [round((end - start) * HGSC_MPP / MPP) for start, end in zip(box[:2], box[2:], strict=True)]
            cut = image.crop(box).resize((size[0], size[1]), Image.Resampling.BICUBIC)
            yield split, f"{path.stem}_{n}", (np.asarray(cut), (points_N2[inside_N] - box[:2]) * HGSC_MPP / MPP)


def squares(slides: Path, places: Places) -> Iterator[Field]:
    """Cut squares out of slides, with the nuclei that are blue there; the first of each slide first."""
    side = round(SQUARE_UM / MPP)
    for name, (mpp, corners) in places.items():
        with Slide(slides / name, mpp) as slide:
            for x, y in corners:
                image_HW3 = slide.read_pixels(x, y, side, side, MPP)
                yield image_HW3, blue_nuclei(image_HW3)


def blue_nuclei(image_HW3: np.ndarray) -> np.ndarray:
    """Find spots of haematoxylin that hold no DAB, in an image of 0.5 um/px: [N, 2], px."""
    amounts_HW3 = density_table()[image_HW3] @ unmixing_matrix(QUPATH_HAEMATOXYLIN, tuple(DAB))
    blue_HW, brown_HW = (gaussian_filter(amounts_HW3[..., stain], FINE_UM / MPP) for stain in (0, 1))
    spots_HW = blue_HW - gaussian_filter(amounts_HW3[..., 0], COARSE_UM / MPP)
    side = 1 + round(APART_UM / MPP)
    found_HW = (spots_HW > MIN_SPOT) & (spots_HW == maximum_filter(spots_HW, side))
    found_HW &= (brown_HW < MIN_DAB) | (brown_HW < DAB_SHARE * blue_HW)
    return np.argwhere(found_HW)[:, ::-1] + 0.5


def made_fields(data: Path) -> Iterator[tuple[str, str, Field]]:
    """Yield split, name and field of everything that was not annotated by others."""
    for name, places in SILVER.items():
        for n, field in enumerate(squares(data / "slides", {name: places})):
            yield ("train" if n else "val"), f"{name.split('_')[0]}_{n}", field
    for n, (image_HW3, _) in enumerate(squares(data / "slides", EMPTY)):
        yield "train", f"empty_{n}", (image_HW3, np.zeros((0, 2)))
    for n in range(SECTIONS):
        tissue = section(n, SQUARE_UM, SQUARE_UM)
        yield "train", f"section_{n}", (tissue.render(MPP), tissue.cells(MPP)[0])


def blurred(root: Path) -> Iterator[tuple[str, Field]]:
    """Yield name and field of some images of a split out of focus; no cell can be learnt from them."""
    for n, path in enumerate(sorted((root / "images").glob("*.png"))[::BLURRED_OF]):
        sigma = BLUR_UM[n % len(BLUR_UM)] / MPP
        image_HW3 = np.asarray(Image.open(path).convert("RGB"))
        yield f"blurred_{path.stem}", (gaussian_filter(image_HW3, (sigma, sigma, 0)), np.zeros((0, 2)))


def main(data: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Write the fields.

    Args:
        data: Folder with BRCA-M2C/train, DSB2018/all and HGSC, each with images/ and points/, and slides/.
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
    for split, stem, field in (*hgsc_fields(data / "HGSC"), *made_fields(data)):
        save(out / "held_out" / "HGSC" if split == "held_out" else out / "fields" / split, stem, field)
    for split in ("train", "val"):
        for stem, field in blurred(out / "fields" / split):
            save(out / "fields" / split, stem, field)
    for folder in (out / "fields", out / "held_out"):
        about = {"mpp": MPP, "classes": [{"name": "nucleus", "value": 1}], "origin": "corner"}
        (folder / "dataset.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
