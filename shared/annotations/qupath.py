"""Objects that QuPath exports of an image as GeoJSON: cells (points, outlines) and regions, in px of level 0."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import shapely

from shared.annotations.bounded_files import read_json
from shared.annotations.features import (
    MALFORMED,
    OUTLINES,
    Feature,
    class_of,
    features_of,
    is_ignored,
    kind_of,
    mapping_of,
    point_of,
    polygons_of,
    rings_as_arrays,
    with_children,
)
from shared.annotations.polygons import Polygon, polygon_of, shifted
from shared.errors import UserError

Outlines = Literal["auto", "cells", "regions"]
# Endings of the files that QuPath writes.
SUFFIXES = (".geojson", ".json", ".zip", ".geojson.gz", ".json.gz")
DETECTED = ("cell", "detection")
# QuPath's class of areas to annotate. Its name ends like those of ignored classes, but it is not to be ignored.
REGION_CLASS = "Region*"


@dataclass(frozen=True)
class Region:
    """Annotated area and its class, which may be empty."""

    name: str
    polygon: Polygon


@dataclass(frozen=True)
class Objects:
    """Content of a file of annotations."""

    path: Path
    points_N2: np.ndarray
    names: list[str]
    """Class of each point."""
    regions: list[Region] = field(default_factory=list)
    ignored: list[Region] = field(default_factory=list)
    """Areas of ignored classes."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Numbers of objects that are neither cells nor regions, by description."""

    def shifted(self, x: float, y: float) -> "Objects":
        """Move everything by (x, y) px."""
        regions, ignored = (
            [Region(each.name, shifted(each.polygon, x, y)) for each in areas]
            for areas in (self.regions, self.ignored)
        )
        return dataclasses.replace(
            self, points_N2=self.points_N2 + np.array([x, y]), regions=regions, ignored=ignored
        )

    def choose(self, classes: Collection[str]) -> tuple[list[Region], list[Polygon]]:
        """Split the areas into regions of these classes (none: all), and areas of ignored classes to subtract."""
        chosen = [each for each in [*self.regions, *self.ignored] if each.name in classes]
        ignored = [each.polygon for each in self.ignored if each.name not in classes]
        return chosen if classes else self.regions, ignored

    def note(self) -> str:
        """Describe what is subtracted and left out in one line; empty if nothing is."""
        names = ", ".join(sorted({each.name for each in self.ignored}))
        parts = [f"subtracted {len(self.ignored)} areas of ignored classes ({names})"] if self.ignored else []
        if self.left_out:
            counts = ", ".join(f"{count:,} {what}" for what, count in sorted(self.left_out.items()))
            parts.append(f"left out {counts}")
        return f"note: {self.path}: {'; '.join(parts)}" if parts else ""


def read_regions(path: Path) -> Objects:
    """Read the areas of annotations alone: outlines of cells and detections are no regions.

    Raises:
        UserError: the file is not GeoJSON, or an outline in it is malformed.
    """
    return _Reader(path, "auto", None, cells=False).read()


def read_objects(path: Path, outlines: Outlines = "auto", unclassified: str | None = None) -> Objects:
    """Read cells and regions of a GeoJSON file.

    Points are cells. An outline of a detection is a cell, at the centroid of its nucleus or else its own; an
    outline of an annotation is a region.

    Args:
        path: The file; unpacked if its name ends in .gz or .zip.
        outlines: Take all outlines for cells, every polygon for one; or all for regions.
        unclassified: Class of cells that have none.

    Raises:
        UserError: the file is not GeoJSON, or a cell in it has no class or no position.
    """
    return _Reader(path, outlines, unclassified, cells=True).read()


class _Reader:
    """Collects the objects of one file."""

    def __init__(self, path: Path, outlines: Outlines, unclassified: str | None, cells: bool) -> None:
        self._path, self._outlines, self._unclassified, self._with_cells = path, outlines, unclassified, cells
        self._points: list[tuple[float, float]] = []
        self._objects = Objects(path, np.empty((0, 2)), [])
        self._nameless: list[str] = []

    def read(self) -> Objects:
        features = features_of(read_json(self._path, rings_as_arrays))
        if features is None:
            raise UserError(f"{self._path} is JSON, but not GeoJSON; export it from QuPath as GeoJSON")
        for number, feature in enumerate(with_children(features), 1):
            where = f"{self._path}, feature {number}"
            try:
                self._add(feature, where)
            except MALFORMED as error:
                raise UserError(f"{where}: its geometry is malformed ({error}); export it again") from error
        if self._nameless:
            raise UserError(self._without_class())
        points_N2 = np.array(self._points, np.float64).reshape(-1, 2)
        return dataclasses.replace(self._objects, points_N2=points_N2)

    def _add(self, feature: Feature, where: str) -> None:
        kind, shape = kind_of(feature), str(mapping_of(feature.get("geometry")).get("type") or "")
        if kind in ("tile", "tmaCore", "root") or shape not in (*OUTLINES, "Point", "MultiPoint"):
            self._leave_out(kind, shape)
        elif shape in OUTLINES and self._is_region(kind):
            self._add_regions(feature)
        elif self._with_cells:
            self._add_cells(feature, kind, where)
        else:
            self._leave_out(kind, shape)

    def _leave_out(self, kind: str, shape: str) -> None:
        self._objects.left_out[f"objects of type {kind if shape in OUTLINES else shape or 'none'}"] += 1

    def _is_region(self, kind: str) -> bool:
        return self._outlines == "regions" or (self._outlines == "auto" and kind not in DETECTED)

    def _add_regions(self, feature: Feature) -> None:
        name = class_of(feature)
        ignored = is_ignored(name) and name != REGION_CLASS
        areas = self._objects.ignored if ignored else self._objects.regions
        areas += [Region(name, polygon_of(rings)) for rings in polygons_of(feature["geometry"])]

    def _add_cells(self, feature: Feature, kind: str, where: str) -> None:
        points = list(self._centres(feature, kind))
        if not points:
            self._leave_out(kind, "")
        name = class_of(feature) or self._unclassified or ""
        if is_ignored(name):
            self._objects.left_out[f"cells of class {name}"] += len(points)
            return
        self._nameless += [] if name else [where] * len(points)
        self._points += points
        self._objects.names.extend([name] * len(points))

    def _centres(self, feature: Feature, kind: str) -> Iterator[tuple[float, float]]:
        geometry = mapping_of(feature.get("nucleusGeometry")) or feature["geometry"]
        match geometry["type"]:
            case "Point":
                yield point_of(geometry["coordinates"])
            case "MultiPoint":
                yield from map(point_of, geometry["coordinates"])
            case "Polygon" | "MultiPolygon":
                outlines = [shapely.Polygon(rings[0]) for rings in polygons_of(geometry)]
                # A cell of QuPath is one object, its nucleus at times in pieces; other tools collect the cells of
                # a class in one MultiPolygon.
                if len(outlines) > 1 and (kind == "cell" or self._outlines == "auto"):
                    largest = max(outlines, key=lambda outline: outline.area)
                    self._objects.left_out[f"smaller outlines of a {kind} (--outlines cells takes them)"] += (
                        len(outlines) - 1
                    )
                    outlines = [largest]
                for centre in shapely.centroid(outlines):
                    yield centre.x, centre.y

    def _without_class(self) -> str:
        count, of = len(self._nameless), len(self._points)
        cells = f"none of the {of:,} cells in {self._path}" if count == of else f"{self._nameless[0]}: it"
        rest = "has a class" if count == of else f"has no classification (one of {count:,})"
        return f"{cells} {rest}; classify cells in QuPath, or name their class with --unclassified"
