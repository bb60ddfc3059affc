"""Annotations made in QuPath, or predicted and corrected there, and their slides -> a data set to train on.

Tiles are cut at the chosen um/px inside the annotated regions; where a file has no regions, around its cells.
What lies in a tile but outside its region is painted white: nobody has said which cells are there.
"""

import csv
import dataclasses
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from finetune.datasets.annotations.qupath import SUFFIXES, Objects, Outlines, Region, read_objects
from finetune.datasets.description import NAME, class_values
from shared.cli import check_range, make_folder
from shared.errors import NOTHING_FAILED, SOME_FAILED, UserError
from shared.files import atomic_path, write_json
from shared.wsi.image_source import (
    ImageSource,
    bounds_corner,
    find_sources,
    open_source,
    require_fine,
    visible_files,
)
from shared.wsi.polygons import Polygon
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.slide import SlideError

TILES = "tiles.csv"
COLUMNS = ("image", "slide", "x", "y", "width", "height", "mpp", "cells")
# Of an annotation's name, which is the slide's before it.
ENDING = re.compile(r"(\.geojson)?(\.json)?(\.zip)?(\.gz)?$", re.IGNORECASE)
# A tile of which less lies in its region is left out.
LEAST_INSIDE = 0.25
# A tile of which more lies in its region is not painted.
NEARLY_ALL = 0.99
# Around the outermost cells of a file without regions, um: a cell's own width.
RIM_UM = 10.0


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a data set of what QuPath exported (File > Export objects as GeoJSON) and the slides.

    NAME.geojson belongs to the slide or image NAME.*. Points are cells, and so are outlines of detections;
    outlines of annotations are regions in which every cell is annotated.
    """

    annotations: tyro.conf.Positional[Path]
    """GeoJSON file, or a folder of them."""
    slides: Path
    """The slide or image, or a folder of them; its subfolders are searched too."""
    out: Path = Path("data")
    """Where images, points and dataset.json are written."""
    mpp: float = 0.5
    """um/px of the tiles."""
    tile: int = 512
    """Most px of a tile along a side."""
    classes: tuple[str, ...] = ()
    """Classes in order, each NAME=CLASS_IN_QUPATH or just the NAME; default: all that occur, by name."""
    outlines: Outlines = "auto"
    """auto: outlines of detections are cells, of annotations are regions; cells or regions: all of them are."""
    views: int = 1
    """Fields of view (the paper's K): beside each tile also views of 2, 4, ... times its width are cut."""
    slide_mpp: float | None = None
    """um/px of level 0, for slides that do not say it or say it wrongly, and for images."""
    bounds: bool = True
    """Coordinates count from the corner of what was scanned, as QuPath's do; off: from that of the slide."""


@dataclass(frozen=True)
class TilePlace:
    """A tile: its corner in px of level 0, its size in px, and the region that it shows (None: all of it)."""

    x: float
    y: float
    width: int
    height: int
    polygon: Polygon | None = None


@dataclass
class Written:
    """What goes into dataset.json."""

    slides: dict[str, str]
    rows: list[tuple[str | int, ...]]


def import_annotations(config: Import, is_drawn: Callable[[Path], bool] = lambda _: False) -> int:
    """Cut all tiles; returns 0, or 3 if some slides cannot be read.

    Args:
        config: What to cut.
        is_drawn: Recognises pictures that a prediction has drawn, which are no slides.

    Raises:
        UserError: an annotation file is wrong or has no slide; no tile is left; the output is not empty.
    """
    _check(config)
    pairs = _pairs(config, is_drawn)
    values = _classes(config, [path for path, _, _ in pairs])
    written = Written({}, [])
    with _whole_folder(config.out) as folder:
        failed = _cut_slides(dataclasses.replace(config, out=folder), pairs, values, written)
    cells = sum(int(row[-1]) for row in written.rows)
    slides = len(set(written.slides.values()))
    print(f"{config.out}: {len(written.slides)} tiles of {slides} slides, {cells:,} cells: {', '.join(values)}")
    print(f"look: python -m finetune.datasets summary {config.out}; train: python -m finetune --data {config.out}")
    return SOME_FAILED if failed else NOTHING_FAILED


def _cut_slides(
    config: Import, pairs: Sequence[tuple[Path, Path, str]], values: dict[str, str], written: Written
) -> int:
    """The tiles of all slides and what describes them; returns how many slides could not be read."""
    failed = 0
    for annotation, slide, name in tqdm(pairs, unit="slide"):
        try:
            with closing(open_source(slide, config.slide_mpp)) as source:
                require_fine(source, config.mpp)
                _cut_slide(config, annotation, source, name, values, written)
        except SlideError as error:
            failed += 1
            tqdm.write(f"failed: {error}", file=sys.stderr)
    if not written.slides:
        raise UserError(f"nothing in {config.annotations} could be cut into tiles; it needs cells, or regions")
    _describe(config, values, written)
    return failed


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder whose content `folder`, empty or absent, gets if the block ends without an error."""
    folder = folder.resolve()  # `.` has no name
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    for name in ("images", "points"):
        make_folder(partial / name, "--out")
    try:
        yield partial
        make_folder(folder, "--out")
        # Not the folder itself, in which somebody may stand; what describes the rest comes last.
        for path in sorted(partial.iterdir(), key=lambda path: path.name == NAME):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(config: Import) -> None:
    check_range("mpp", config.mpp, *MPP_RANGE)
    check_range("tile", config.tile, 64, 2**14)
    check_range("views", config.views, 1, 6)
    check_range("slide-mpp", config.slide_mpp, *MPP_RANGE)
    if not config.annotations.exists():
        raise UserError(f"there is no GeoJSON file or folder {config.annotations}; check the path")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out} exists already; give a new folder, or remove it")


def _pairs(config: Import, is_drawn: Callable[[Path], bool]) -> list[tuple[Path, Path, str]]:
    """GeoJSON, slide, and the slide's name."""
    folder = config.annotations
    below = [folder] if folder.is_file() else visible_files(folder)
    # Summaries are finetune.predict's.
    files = [
        path for path in below if path.name.lower().endswith(SUFFIXES) and not path.name.endswith(".summary.json")
    ]
    if not files:
        raise UserError(f"{folder} holds no GeoJSON ({', '.join(SUFFIXES)}); export it from QuPath")
    sources = find_sources([config.slides], is_drawn)
    if config.annotations.is_file() and config.slides.is_file():
        return [(folder, config.slides, config.slides.stem)]
    return [_slide_of(path, sources, config.slides) for path in files]


def _slide_of(annotation: Path, sources: dict[Path, Path], folder: Path) -> tuple[Path, Path, str]:
    """The slide with an annotation's name; QuPath may leave the slide's ending in it."""
    name = ENDING.sub("", annotation.name)
    found = [path for path in sources if name in (path.stem, path.name)]
    if not found:
        raise UserError(f"{annotation} belongs to no slide: {folder} has none called {name}; rename one of them")
    if len(found) > 1:
        raise UserError(f"{annotation} may belong to {found[0]} or {found[1]}; give the right one with --slides")
    return annotation, found[0], sources[found[0]].as_posix().replace("/", "_")


def _classes(config: Import, paths: Sequence[Path]) -> dict[str, str]:
    """Class name -> class in QuPath, in order."""
    pairs = [entry.partition("=") for entry in config.classes]
    given = class_values([(name, value or name) for name, _, value in pairs], "--classes")
    found = {name for path in paths for name in read_objects(path, outlines=config.outlines).names}
    if given and (unknown := sorted(found - set(given.values()))):
        raise UserError(f"{config.annotations} has cells of class {unknown[0]!r}; name it in --classes as well")
    if not given and not found:
        raise UserError(f"{config.annotations} has no cells; name the classes with --classes if that is right")
    return given or {name: name for name in sorted(found)}


def _cut_slide(
    config: Import, annotation: Path, source: ImageSource, name: str, values: dict[str, str], written: Written
) -> None:
    """All tiles of one slide."""
    objects = read_objects(annotation, bounds_corner(source) if config.bounds else (0, 0), config.outlines)
    value_of = {value: number for number, value in enumerate(values.values(), 1)}
    numbers_N = np.array([value_of[each] for each in objects.names], np.int64)
    _refuse_strays(objects, source, annotation)
    scale = source.mpp / config.mpp
    owner_N = np.full(len(numbers_N), -1)
    for index, place in enumerate(_places(config, objects, source)):
        xy_N2, inside_N = _within(place, objects.points_N2, scale)
        owner_N[inside_N] = index
        _write_tile(config, source, place, f"{name}_{index:04d}", xy_N2[inside_N], numbers_N[inside_N])
        image = f"images/{name}_{index:04d}.png"
        written.slides[image] = name
        numbers = (f"{place.x:.3f}", f"{place.y:.3f}", place.width, place.height, f"{config.mpp:g}")
        written.rows.append((image, str(source.path), *numbers, int(inside_N.sum())))
    if lost := int((owner_N < 0).sum()):
        where = "outside its regions, or in their corners that fill little of a tile"
        tqdm.write(f"warning: {lost} of {len(owner_N)} cells in {annotation} lie {where}", file=sys.stderr)


def _refuse_strays(objects: Objects, source: ImageSource, annotation: Path) -> None:
    outside_N = ((objects.points_N2 < 0) | (objects.points_N2 > source.size)).any(axis=1)
    if outside_N.any():
        x, y = objects.points_N2[outside_N][0]
        raise UserError(
            f"{annotation} has a cell at ({x:.0f}, {y:.0f}), outside {source.path} ({source.size[0]}x"
            f"{source.size[1]} px); give the slide it was made on, or try --no-bounds"
        )


def _places(config: Import, objects: Objects, source: ImageSource) -> Iterator[TilePlace]:
    """Tiles of every region, or around the cells."""
    scale = source.mpp / config.mpp
    for region in objects.regions:
        yield from _in_region(config, region, source, scale)
    if objects.regions or not len(objects.points_N2):
        return
    rim = RIM_UM / source.mpp
    low = (objects.points_N2.min(axis=0) - rim).clip(0)
    high = np.minimum(objects.points_N2.max(axis=0) + rim, source.size)
    for place in _grid((*low, *high), scale, config.tile):
        if _within(place, objects.points_N2, scale)[1].any():
            yield place


def _in_region(config: Import, region: Region, source: ImageSource, scale: float) -> Iterator[TilePlace]:
    """Tiles that cover a region; those of which little lies in it are left out."""
    left, top, right, bottom = region.polygon.box
    box = (max(left, 0.0), max(top, 0.0), min(right, source.size[0]), min(bottom, source.size[1]))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(f"a region lies outside {source.path}; give the slide it was drawn on, or try --no-bounds")
    for place in _grid(box, scale, config.tile):
        inside = _raster_of(region.polygon, place, scale).mean()
        if inside >= LEAST_INSIDE:
            # Edges of a rectangle need not fall between two px.
            yield place if inside > NEARLY_ALL else dataclasses.replace(place, polygon=region.polygon)


def _grid(box: tuple[float, float, float, float], scale: float, tile: int) -> Iterator[TilePlace]:
    """Tiles of one size, of at most `tile` px, that cover a box in px of level 0; the last may reach beyond."""
    left, top, right, bottom = box
    # A millionth of a px is a rounding error.
    sides = [max(1, math.ceil(side * scale - 1e-6)) for side in (right - left, bottom - top)]
    columns, rows = (math.ceil(side / tile) for side in sides)
    width, height = (math.ceil(side / count) for side, count in zip(sides, (columns, rows), strict=True))
    for row in range(rows):
        for column in range(columns):
            yield TilePlace(left + column * width / scale, top + row * height / scale, width, height)


def _within(place: TilePlace, points_N2: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Points in px of a tile, and which of them lie in it."""
    # Rounded, so that of two tiles exactly one has a cell on the line between them.
    xy_N2 = np.round((points_N2 - (place.x, place.y)) * scale, 6)
    inside_N = np.all((xy_N2 >= 0) & (xy_N2 < (place.width, place.height)), axis=1)
    if place.polygon is not None:
        inside_N = inside_N & place.polygon.contains(points_N2)
    return xy_N2, inside_N


def _raster_of(polygon: Polygon, place: TilePlace, scale: float) -> np.ndarray:
    """Which px of a tile lie in a polygon."""
    return polygon.mask(np.array([place.x, place.y]), 1 / scale, place.height, place.width)


def _write_tile(
    config: Import, source: ImageSource, place: TilePlace, name: str, xy_M2: np.ndarray, numbers_M: np.ndarray
) -> None:
    """The image of a tile, its wider views, its cells."""
    for doublings in range(config.views):
        factor = 2**doublings
        side_x, side_y = (side * config.mpp / source.mpp for side in (place.width, place.height))
        x, y = place.x - side_x * (factor - 1) / 2, place.y - side_y * (factor - 1) / 2
        image = source.read(x, y, place.width, place.height, config.mpp * factor)
        if place.polygon is not None and factor == 1:
            inside_HW = _raster_of(place.polygon, place, source.mpp / config.mpp)
            image = Image.composite(image, Image.new("RGB", image.size, "white"), Image.fromarray(inside_HW))
        ending = ".png" if factor == 1 else f".fov{factor}.png"
        with atomic_path(config.out / "images" / f"{name}{ending}") as temporary:
            image.save(temporary, format="PNG")
    with atomic_path(config.out / "points" / f"{name}.csv") as temporary:
        lines = [f"{x:.3f},{y:.3f},{number}\n" for (x, y), number in zip(xy_M2, numbers_M, strict=True)]
        temporary.write_text("".join(["x,y,class\n", *lines]), encoding="utf-8")


def _describe(config: Import, values: dict[str, str], written: Written) -> None:
    """dataset.json, written last, and where each tile was cut."""
    with atomic_path(config.out / TILES) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *written.rows])
    description = {
        "format": "points",
        "mpp": config.mpp,
        "classes": [{"name": name, "value": number} for number, name in enumerate(values, 1)],
        "origin": "corner",
        "slides": written.slides,
    }
    write_json(config.out / NAME, description)
