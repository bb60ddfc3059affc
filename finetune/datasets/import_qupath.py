"""Data sets cut from slides that were annotated in QuPath, or predicted and corrected there.

Tiles are cut at the chosen um/px inside the annotated regions; where a file has no regions, around its cells.
Pixels of a tile outside its region are white: cells there are not annotated.
"""

import csv
import dataclasses
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import tyro
from tqdm import tqdm

from finetune.datasets.description import NAME, class_values
from finetune.datasets.patients import patient_of, read_patients
from finetune.datasets.tile_cutting import Cutter, TilePlace, annotated_areas
from shared.annotations.polygons import Polygon
from shared.annotations.qupath import SUFFIXES, Objects, Outlines, read_objects
from shared.cli import Range, make_folder, validate
from shared.errors import NOTHING_FAILED, SOME_FAILED, UserError
from shared.files import atomic_path, file_lock, write_json
from shared.wsi.image_source import (
    ImageSource,
    bounds_corner,
    find_sources,
    open_source,
    require_fine,
    visible_files,
)
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.slide import SlideError

TILES, LOCK = "tiles.csv", ".lock"
COLUMNS = ("image", "slide", "x", "y", "width", "height", "mpp", "cells")
# Endings of an annotation's name after the name of its slide.
ENDING = re.compile(r"(\.geojson)?(\.json)?(\.zip)?(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a data set from QuPath's annotations (File > Export objects as GeoJSON) and the slides.

    NAME.geojson belongs to the slide or image NAME.*. Points and outlines of detections are cells; outlines of
    annotations are regions in which every cell is annotated. Areas of ignored classes (Ignore*) are subtracted.
    """

    help_groups: ClassVar = {
        "annotations": "input",
        "out": "output",
        "classes": "annotation",
        "views": "output",
        "slide_mpp": "input",
    }

    annotations: tyro.conf.Positional[Path]
    """GeoJSON file, or a folder of them."""
    slides: Path
    """The slide or image, or a folder of them; its subfolders are searched too."""
    out: Path = Path("data")
    """Output folder of images, points and dataset.json."""
    mpp: Annotated[float, Range(*MPP_RANGE)] = 0.5
    """um/px of the tiles."""
    tile: Annotated[int, Range(64, 2**14)] = 512
    """Maximum side of a tile, px."""
    classes: tuple[str, ...] = ()
    """Classes in order, each NAME=CLASS_IN_QUPATH or just the NAME; default: all that occur, by name."""
    region_class: tuple[str, ...] = ()
    """Cut tiles only from regions of these classes; default: all regions."""
    outlines: Outlines = "auto"
    """auto: outlines of detections are cells, of annotations regions; cells or regions: all of them are."""
    unclassified: str | None = None
    """Class of cells that have none in the file; default: refuse them."""
    patients: Path | None = None
    """CSV with the columns `slide` and `patient` (a harvest's list): tiles of a patient stay in one split."""
    views: Annotated[int, Range(1, 6)] = 1
    """Fields of view (the paper's K): beside each tile also views of 2, 4, ... times its width are cut."""
    slide_mpp: Annotated[float | None, Range(*MPP_RANGE)] = None
    """um/px of level 0, for images and for slides that state none or a wrong one."""
    bounds: bool = True
    """Coordinates count from the corner of the scanned area, as QuPath's do; off: from that of the slide."""


@dataclass(frozen=True)
class AnnotatedSlide:
    """Slide with the objects of its annotation file."""

    objects: Objects
    slide: Path
    name: str


@dataclass
class Written:
    """Contents of dataset.json and tiles.csv."""

    slides: dict[str, str]
    rows: list[tuple[str | int, ...]]


def import_annotations(config: Import, is_drawn: Callable[[Path], bool] = lambda _: False) -> int:
    """Cut all tiles; returns 0, or 3 if some slides cannot be read.

    Args:
        config: Annotations, slides and tiles.
        is_drawn: Recognises pictures drawn by a prediction, which are no slides.

    Raises:
        UserError: an annotation file is wrong or has no slide; no tile is left; the output is not empty.
    """
    _check(config)
    annotated = [
        AnnotatedSlide(read_objects(path, config.outlines, config.unclassified), slide, name)
        for path, slide, name in _pairs(config, is_drawn)
    ]
    values = _classes(config, [each.objects for each in annotated])
    written = Written({}, [])
    with _whole_folder(config.out) as folder:
        failed = _cut_slides(dataclasses.replace(config, out=folder), annotated, values, written)
    cells = sum(int(row[-1]) for row in written.rows)
    slides = len(set(written.slides.values()))
    print(f"{config.out}: {len(written.slides)} tiles of {slides} slides, {cells:,} cells: {', '.join(values)}")
    print(
        f"check: python -m finetune.datasets summary {config.out}; train: python -m finetune --data {config.out}"
    )
    return SOME_FAILED if failed else NOTHING_FAILED


def _cut_slides(
    config: Import, annotated: Sequence[AnnotatedSlide], values: dict[str, str], written: Written
) -> int:
    """Write the tiles of all slides and their description; returns the number of slides that cannot be read."""
    failed = 0
    for each in tqdm(annotated, unit="slide"):
        try:
            with closing(open_source(each.slide, config.slide_mpp)) as source:
                require_fine(source, config.mpp)
                _cut_slide(config, each, source, values, written)
        except SlideError as error:
            failed += 1
            tqdm.write(f"failed: {error}", file=sys.stderr)
    if not written.slides:
        raise UserError(f"nothing in {config.annotations} could be cut into tiles; it needs cells, or regions")
    _describe(config, annotated, values, written)
    return failed


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder whose content moves to `folder`, empty or absent, if the block ends without an error.

    Raises:
        UserError: another import writes there.
    """
    folder = folder.resolve()  # `.` has no name
    partial = folder.with_name(f".{folder.name}.partial")
    make_folder(partial, "--out")
    try:
        with file_lock(partial / LOCK):
            for left in ("images", "points"):  # by a killed process
                shutil.rmtree(partial / left, ignore_errors=True)
                make_folder(partial / left, "--out")
            try:
                yield partial
                make_folder(folder, "--out")
                # Not the folder itself, which may be the working directory; its description comes last.
                for path in sorted(partial.glob("[!.]*"), key=lambda path: path.name == NAME):
                    path.replace(folder / path.name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except BlockingIOError as error:
        raise UserError(f"another import writes --out {folder}; wait for it, or give another --out") from error


def _check(config: Import) -> None:
    validate(config)
    if not config.annotations.exists():
        raise UserError(f"there is no GeoJSON file or folder {config.annotations}; check the path")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out} exists already; give a new folder, or remove it")


def _pairs(config: Import, is_drawn: Callable[[Path], bool]) -> list[tuple[Path, Path, str]]:
    """Pair each GeoJSON file with its slide and the slide's name."""
    folder = config.annotations
    below = [folder] if folder.is_file() else visible_files(folder)
    # Summaries are written by finetune.predict.
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
    """Find the slide with an annotation's name, in which QuPath may leave the slide's ending."""
    name = ENDING.sub("", annotation.name)
    found = [path for path in sources if name in (path.stem, path.name)]
    if not found:
        raise UserError(f"{annotation} belongs to no slide: {folder} has none called {name}; rename one of them")
    if len(found) > 1:
        raise UserError(f"{annotation} may belong to {found[0]} or {found[1]}; give the right one with --slides")
    return annotation, found[0], sources[found[0]].as_posix().replace("/", "_")


def _classes(config: Import, annotated: Sequence[Objects]) -> dict[str, str]:
    """Map class names to classes in QuPath, in order."""
    pairs = [entry.partition("=") for entry in config.classes]
    given = class_values([(name, value or name) for name, _, value in pairs], "--classes")
    found = {name for objects in annotated for name in objects.names}
    if given and (unknown := sorted(found - set(given.values()))):
        raise UserError(f"{config.annotations} has cells of class {unknown[0]!r}; name it in --classes as well")
    if not given and not found:
        outlines = sum(len(objects.regions) for objects in annotated)
        hint = f" (if its {outlines:,} outlines are cells, add --outlines cells)" if outlines else ""
        raise UserError(
            f"{config.annotations} has no cells{hint}; name the classes with --classes if that is right"
        )
    return given or class_values([(name, name) for name in sorted(found)], str(config.annotations))


def _cut_slide(
    config: Import, each: AnnotatedSlide, source: ImageSource, values: dict[str, str], written: Written
) -> None:
    """Write all tiles of one slide."""
    objects = each.objects.shifted(*bounds_corner(source)) if config.bounds else each.objects
    if note := objects.note():
        _report(note)
    _refuse_strays(objects, source)
    areas, ignored, warnings = annotated_areas(objects, config.region_class)
    for warning in warnings:
        _report(warning)
    cells_alone = not objects.regions and not config.region_class
    cutter = Cutter(source, config.mpp, config.tile, ignored)
    value_of = {value: number for number, value in enumerate(values.values(), 1)}
    numbers_N = np.array([value_of[value] for value in objects.names], np.int64)
    free_N = np.ones(len(numbers_N), bool)
    first = sum(slide == each.name for slide in written.slides.values())  # of another file of the slide
    for index, place in enumerate(_places(cutter, areas, objects.points_N2, cells_alone), first):
        xy_N2, inside_N = cutter.within(place, objects.points_N2)
        inside_N &= free_N
        free_N &= ~inside_N
        name = f"{each.name}_{index:04d}"
        _write_images(config, cutter, place, name)
        _write_points(config.out / "points" / f"{name}.csv", xy_N2[inside_N], numbers_N[inside_N])
        image = f"images/{name}.png"
        written.slides[image] = each.name
        numbers = (f"{place.x:.3f}", f"{place.y:.3f}", place.width, place.height, f"{config.mpp:g}")
        written.rows.append((image, str(source.path), *numbers, int(inside_N.sum())))
    if free_N.any():
        where = "outside its regions, in ignored areas, or in corners that fill little of a tile"
        _report(f"warning: {free_N.sum()} of {len(free_N)} cells in {objects.path} are left out: {where}")


def _report(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _refuse_strays(objects: Objects, source: ImageSource) -> None:
    outside_N = ((objects.points_N2 < 0) | (objects.points_N2 > source.size)).any(axis=1)
    if outside_N.any():
        x, y = objects.points_N2[outside_N][0]
        raise UserError(
            f"{objects.path} has a cell at ({x:.0f}, {y:.0f}), outside {source.path} ({source.size[0]}x"
            f"{source.size[1]} px); give the slide it was made on, or try --no-bounds"
        )


def _places(
    cutter: Cutter, areas: Sequence[Polygon], points_N2: np.ndarray, cells_alone: bool
) -> Iterator[TilePlace]:
    """Yield the tiles of every area; of a file without regions, those around its cells."""
    for area in areas:
        yield from cutter.in_area(area)
    if cells_alone and len(points_N2):
        yield from cutter.around(points_N2)


def _write_images(config: Import, cutter: Cutter, place: TilePlace, name: str) -> None:
    """Write the image of a tile and its wider views."""
    for factor in (2**doublings for doublings in range(config.views)):
        ending = ".png" if factor == 1 else f".fov{factor}.png"
        with atomic_path(config.out / "images" / f"{name}{ending}") as temporary:
            cutter.read(place, factor).save(temporary, format="PNG")


def _write_points(path: Path, xy_M2: np.ndarray, numbers_M: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        lines = [f"{x:.3f},{y:.3f},{number}\n" for (x, y), number in zip(xy_M2, numbers_M, strict=True)]
        temporary.write_text("".join(["x,y,class\n", *lines]), encoding="utf-8")


def _describe(
    config: Import, annotated: Sequence[AnnotatedSlide], values: dict[str, str], written: Written
) -> None:
    """Write tiles.csv, where each tile was cut, and dataset.json, last."""
    with atomic_path(config.out / TILES) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *written.rows])
    patients = read_patients(config.patients)
    of_slides = {each.name: patient_of(patients, each.slide) for each in annotated}
    cut = sorted(set(written.slides.values()))
    description = {
        "format": "points",
        "mpp": config.mpp,
        "classes": [{"name": name, "value": number} for number, name in enumerate(values, 1)],
        "origin": "corner",
        "slides": written.slides,
        **({"patients": {name: of_slides[name] for name in cut if of_slides[name]}} if patients else {}),
    }
    write_json(config.out / NAME, description)
