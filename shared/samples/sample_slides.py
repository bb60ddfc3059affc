"""Sample slides and annotated tiles with known cells, for `make demo` and the tests.

`python -m shared.samples.sample_slides OUT` writes

- `OUT/slides/BIOMARKER/NAME.tif|.svs`: pyramidal tiled JPEG TIFFs that OpenSlide opens;
- `OUT/slides_cells/BIOMARKER/NAME.csv`: their cells (`x,y,class`, px of level 0, corner origin);
- `OUT/tiles`: annotated tiles in the layout that `finetune` reads (`dataset.json`, images, points).
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from shared.cli import Range, make_folder, parse, run, validate
from shared.files import atomic_path, write_json
from shared.samples.pyramidal_tiff import TiffLevel, write_pyramid
from shared.samples.specimen import Specimen, Stain, section

TILE = 256
LEVEL_FACTOR = 4  # between levels, as in Aperio's files
CLASSES = [{"name": "negative", "value": 1}, {"name": "positive", "value": 2}]
# Folder, file name, um/px, shape of the tissue; resolutions of real 40x scanners.
SLIDES = (
    ("Ki-67", "sample-a.tif", 0.2500, "blob"),
    ("Ki-67", "sample-b.svs", 0.2630, "biopsy"),
    ("PD-L1", "sample-c.tif", 0.2300, "blob"),
)


@dataclass(frozen=True)
class SampleConfig:
    """Write sample slides and annotated tiles with known cells."""

    out: tyro.conf.Positional[Path]
    """Folder to write into."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Random seed of all pixels."""
    side: Annotated[int, Range(TILE, 2**15)] = 4096
    """Width and height of a slide in px of level 0."""
    tiles: Annotated[tuple[int, int, int], Range(0, 10**6)] = (24, 6, 8)
    """Numbers of annotated tiles for training, validation and test."""


def write_slide(  # noqa: PLR0913
    path: Path,
    specimen: Specimen,
    mpp: float,
    *,
    aperio: bool = False,
    resolution: bool = True,
    quality: int = 85,
) -> None:
    """Store a specimen as a pyramidal tiled JPEG TIFF, atomically.

    Args:
        path: The file; OpenSlide recognises formats by content, whatever the ending.
        specimen: The tissue.
        mpp: um/px of level 0.
        aperio: State magnification and resolution like an Aperio scanner (`AppMag`, `MPP`) instead of in TIFF
            tags.
        resolution: Whether the file states its resolution.
        quality: JPEG quality of the tiles.
    """
    images = _pyramid(Image.fromarray(specimen.render(mpp)))
    levels = [jpeg_level(image, quality) for image in images]
    description = _aperio_description(*images[0].size, mpp if resolution else None) if aperio else ""
    with atomic_path(path) as temporary:
        write_pyramid(temporary, levels, description, 1e4 / mpp if resolution and not aperio else None)


TILE_UM = (48, 150)  # range of sides of tiles that can hold 15-60 cells


def write_tiles(  # noqa: PLR0913
    folder: Path,
    *,
    tiles: tuple[int, int, int] = (24, 6, 8),
    side: int = 256,
    mpp: float = 0.5,
    seed: int = 0,
    tiles_per_slide: int = 4,
) -> None:
    """Write annotated tiles of `side` px at `mpp` um/px into `folder/{train,val,test}/{images,points}`.

    Every tile holds 15-60 cells. Tiles of one slide share its stain, stay in one split, and are listed under
    its key in `dataset.json`.

    Raises:
        ValueError: tiles of that size hardly ever have so many cells.
    """
    if not TILE_UM[0] <= side * mpp <= TILE_UM[1]:
        raise ValueError(f"a tile of {side * mpp:g} um is not from {TILE_UM[0]} to {TILE_UM[1]} um wide")
    slide_of: dict[str, str] = {}
    images: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split_index, (split, count) in enumerate(zip(images, tiles, strict=True)):
        for index in range(count):
            slide, number = divmod(index, tiles_per_slide)
            key = f"{split}-slide-{slide:02d}"
            stain = Stain.random(np.random.default_rng((seed, split_index, slide)))
            specimen = _tile_specimen((seed, split_index, slide, number), side * mpp, stain)
            name = f"{key}_{number}"
            _save_png(folder / split / "images" / f"{name}.png", specimen.render(mpp))
            write_cells(folder / split / "points" / f"{name}.csv", specimen, mpp)
            images[split].append(f"{split}/images/{name}.png")
            slide_of[images[split][-1]] = key
    dataset = {
        "format": "points",
        "mpp": mpp,
        "classes": CLASSES,
        "origin": "corner",
        "splits": images,
        "slides": slide_of,
    }
    write_json(folder / "dataset.json", dataset)


def write_cells(path: Path, specimen: Specimen, mpp: float) -> None:
    """Write a specimen's cells as CSV: `x,y,class`, px of `mpp` um, corner origin."""
    points_N2, classes_N = specimen.cells(mpp)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "class"])
        for (x, y), value in zip(points_N2, classes_N, strict=True):
            writer.writerow([f"{x:.2f}", f"{y:.2f}", int(value)])


def main() -> None:
    """Write the sample slides and tiles."""
    config = parse(SampleConfig, "python -m shared.samples.sample_slides")
    validate(config)
    make_folder(config.out, "OUT")
    for index, (biomarker, name, mpp, shape) in enumerate(SLIDES):
        size_um = config.side * mpp
        specimen = section(1000 * config.seed + index, size_um, size_um, shape=shape)
        write_slide(config.out / "slides" / biomarker / name, specimen, mpp, aperio=name.endswith(".svs"))
        write_cells((config.out / "slides_cells" / biomarker / name).with_suffix(".csv"), specimen, mpp)
    write_tiles(config.out / "tiles", tiles=config.tiles, seed=config.seed)
    print(f"slides: {config.out / 'slides'}   their cells: {config.out / 'slides_cells'}")
    print(f"annotated tiles: {config.out / 'tiles'}")


def _pyramid(image: Image.Image) -> list[Image.Image]:
    """Return the image and its reductions, down to one that fits into a tile."""
    levels = [image]
    while max(levels[-1].size) > TILE:
        levels.append(levels[-1].reduce(LEVEL_FACTOR))
    return levels


def jpeg_level(image: Image.Image, quality: int) -> TiffLevel:
    """Return a level of a slide with 4:2:0 chroma, like scanners; tiles are padded with black."""
    return TiffLevel(*image.size, TILE, _jpeg_tiles(image, quality))


def _jpeg_tiles(level: Image.Image, quality: int) -> Iterator[bytes]:
    """Yield the tiles of a level row by row, each a whole JPEG stream."""
    for top in range(0, level.height, TILE):
        for left in range(0, level.width, TILE):
            stream = io.BytesIO()
            tile = level.crop((left, top, left + TILE, top + TILE))
            tile.save(stream, format="JPEG", quality=quality, subsampling="4:2:0")
            yield stream.getvalue()


def _aperio_description(width: int, height: int, mpp: float | None) -> str:
    resolution = "" if mpp is None else f"|AppMag = 40|MPP = {mpp:.4f}"
    return f"Aperio Image Library v12.0.16 \r\n{width}x{height} ({TILE}x{TILE}) JPEG/RGB Q=85{resolution}"


def _tile_specimen(key: tuple[int, ...], side_um: float, stain: Stain) -> Specimen:
    """Return the first random specimen with 15-60 cells."""
    seeds = np.random.default_rng(key)
    while True:
        specimen = section(int(seeds.integers(2**32)), side_um, side_um, stain)
        if 15 <= len(specimen.cells(1.0)[0]) <= 60:
            return specimen


def _save_png(path: Path, image: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


if __name__ == "__main__":
    run(main)
