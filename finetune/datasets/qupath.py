"""What QuPath exports of a whole slide: cells (points, outlines) and regions in px of level 0."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.datasets.cells_geojson import class_of, features_of, mapping_of
from finetune.polygons import Polygon
from shared.command_line import UserError

Outlines = Literal["auto", "cells", "regions"]
# How file names end that QuPath writes.
SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")


@dataclass(frozen=True)
class Region:
    """A polygon and its class (empty: none)."""

    name: str
    polygon: Polygon


@dataclass
class Objects:
    """What is in a file."""

    points_N2: np.ndarray
    names: list[str]
    """Class of every point."""
    regions: list[Region] = field(default_factory=list)


def read_objects(path: Path, offset: tuple[float, float] = (0, 0), outlines: Outlines = "auto") -> Objects:
    """Cells and regions in a GeoJSON file.

    Points are cells. An outline is a cell, at its nucleus's centre of gravity or else its own, if it is a
    detection, and a region if it is an annotation. Other objects, such as lines, are left out.

    Args:
        path: The file; compressed if its name ends in .gz.
        offset: Added to all coordinates: the corner of what was scanned, which QuPath counts from.
        outlines: Take all outlines for cells, or for regions.

    Raises:
        UserError: it is no GeoJSON, or a cell in it has no class or no position.
    """
    points: list[tuple[float, float]] = []
    names: list[str] = []
    regions: list[Region] = []
    for number, feature in enumerate(_features(path), 1):
        where, feature = f"{path}, feature {number}", mapping_of(feature)
        try:
            if _is_region(feature, outlines):
                regions += [
                    Region(_name(feature), each.shifted(*offset)) for each in _polygons(feature["geometry"])
                ]
                continue
            for x, y in _cells(feature):
                points.append((x + offset[0], y + offset[1]))
                names.append(class_of(feature, where))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"{where}: its geometry cannot be understood ({error}); export it again") from error
    return Objects(np.array(points, np.float64).reshape(-1, 2), names, regions)


def _features(path: Path) -> list[Any]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            features = features_of(json.load(file))
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}); export it from QuPath as GeoJSON") from error
    if features is None:
        raise UserError(f"{path} is JSON, but no GeoJSON features; export it from QuPath as GeoJSON")
    return features


def _kind(feature: dict[str, Any]) -> str:
    """What QuPath calls the object; versions before 0.3 say it in other places."""
    properties = mapping_of(feature.get("properties"))
    kind = properties.get("objectType") or properties.get("object_type") or feature.get("id") or ""
    return str(kind).lower()


def _is_region(feature: dict[str, Any], outlines: Outlines) -> bool:
    if mapping_of(feature.get("geometry")).get("type") not in ("Polygon", "MultiPolygon"):
        return False
    detected = any(word in _kind(feature) for word in ("cell", "detection", "tile"))
    return outlines == "regions" or (outlines == "auto" and not detected)


def _cells(feature: dict[str, Any]) -> Iterator[tuple[float, float]]:
    geometry = mapping_of(feature.get("nucleusGeometry")) or mapping_of(feature.get("geometry"))
    match geometry.get("type"):
        case "Point":
            yield _point(geometry["coordinates"])
        case "MultiPoint":
            yield from map(_point, geometry["coordinates"])
        case "Polygon" | "MultiPolygon" if "tile" not in _kind(feature):
            yield max(_polygons(geometry), key=lambda polygon: np.ptp(polygon.rings[0], axis=0).prod()).centroid


def _point(coordinates: Any) -> tuple[float, float]:
    x, y = float(coordinates[0]), float(coordinates[1])
    if not np.isfinite([x, y]).all():
        raise ValueError(f"({x}, {y}) is no point")
    return x, y


def _polygons(geometry: dict[str, Any]) -> list[Polygon]:
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [Polygon(tuple(_ring(ring) for ring in part)) for part in parts]


def _ring(coordinates: Any) -> np.ndarray:
    """Without the last corner, which repeats the first."""
    ring = np.array([corner[:2] for corner in coordinates], np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("an outline has no three corners")
    return ring[:-1] if len(ring) > 3 and (ring[0] == ring[-1]).all() else ring


def _name(feature: dict[str, Any]) -> str:
    """The class of a region, which need not have one."""
    try:
        return class_of(feature, "")
    except UserError:
        return ""
