"""What QuPath exports of a whole slide: cells (points, outlines) and regions in px of level 0."""

import gzip
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.datasets.annotations.geojson import class_of, features_of, list_of, mapping_of
from shared.errors import UserError
from shared.wsi.polygons import Polygon

Outlines = Literal["auto", "cells", "regions"]
# How file names end that QuPath writes.
SUFFIXES = (".geojson", ".json", ".zip", ".geojson.gz", ".json.gz")
# What version 0.2 calls objects, in the place of their identity.
LEGACY = {
    "PathCellObject": "cell",
    "PathDetectionObject": "detection",
    "PathTileObject": "tile",
    "PathAnnotationObject": "annotation",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
# Objects that are neither cells nor regions.
OTHERS = ("tile", "tmaCore", "root")


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


def read_regions(path: Path, offset: tuple[float, float] = (0, 0)) -> list[Region]:
    """All outlines in a GeoJSON file; whether its points have a class is of no account.

    Raises:
        UserError: it is no GeoJSON, or an outline in it has no corners.
    """
    return read_objects(path, offset, "regions", cells=False).regions


def read_objects(
    path: Path, offset: tuple[float, float] = (0, 0), outlines: Outlines = "auto", cells: bool = True
) -> Objects:
    """Cells and regions in a GeoJSON file.

    Points are cells. An outline is a cell, at its nucleus's centre of gravity or else its own, if it is a
    detection, and a region if it is an annotation. Other objects, such as lines, are left out.

    Args:
        path: The file; compressed if its name ends in .gz or .zip.
        offset: Added to all coordinates: the corner of what was scanned, which QuPath counts from.
        outlines: Take all outlines for cells, or for regions.
        cells: Off: leave the cells out.

    Raises:
        UserError: it is no GeoJSON, or a cell in it has no class or no position.
    """
    points: list[tuple[float, float]] = []
    names: list[str] = []
    regions: list[Region] = []
    for number, feature in enumerate(_features(path), 1):
        where = f"{path}, feature {number}"
        if _kind(feature) in OTHERS:
            continue
        try:
            if _is_region(feature, outlines):
                regions += [
                    Region(_name(feature), each.shifted(*offset)) for each in _polygons(feature["geometry"])
                ]
                continue
            for x, y in _cells(feature) if cells else ():
                points.append((x + offset[0], y + offset[1]))
                names.append(class_of(feature, where))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"{where}: its geometry cannot be understood ({error}); export it again") from error
    return Objects(np.array(points, np.float64).reshape(-1, 2), names, regions)


def _features(path: Path) -> list[dict[str, Any]]:
    """All in a file, those inside others among them."""
    try:
        features = features_of(json.loads(_content(path)))
        if features is not None:
            return list(_with_children(features))
    except (OSError, EOFError, ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not JSON ({error}); export it from QuPath as GeoJSON") from error
    raise UserError(f"{path} is JSON, but no GeoJSON features; export it from QuPath as GeoJSON")


def _content(path: Path) -> bytes:
    """What a file holds, unpacked."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as file:
            return file.read()
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith((".geojson", ".json"))]
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} files of JSON, not one")
            return archive.read(names[0])
    return path.read_bytes()


def _with_children(features: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Features, and those inside them where a whole hierarchy was exported."""
    for feature in map(mapping_of, features):
        yield feature
        properties = mapping_of(feature.get("properties"))
        yield from _with_children(list_of(properties.get("childObjects") or properties.get("children")))


def _kind(feature: dict[str, Any]) -> str:
    """What QuPath calls the object; older versions say it in other places."""
    properties = mapping_of(feature.get("properties"))
    kinds = [properties.get(name) for name in ("objectType", "object_type", "type")]
    return next((str(kind) for kind in kinds if kind), LEGACY.get(str(feature.get("id")), ""))


def _is_region(feature: dict[str, Any], outlines: Outlines) -> bool:
    if mapping_of(feature.get("geometry")).get("type") not in ("Polygon", "MultiPolygon"):
        return False
    detected = _kind(feature) in ("cell", "detection")
    return outlines == "regions" or (outlines == "auto" and not detected)


def _cells(feature: dict[str, Any]) -> Iterator[tuple[float, float]]:
    geometry = mapping_of(feature.get("nucleusGeometry")) or mapping_of(feature.get("geometry"))
    match geometry.get("type"):
        case "Point":
            yield _point(geometry["coordinates"])
        case "MultiPoint":
            yield from map(_point, geometry["coordinates"])
        case "Polygon" | "MultiPolygon":
            yield max(_polygons(geometry), key=lambda polygon: np.ptp(polygon.rings[0], axis=0).prod()).centroid


def _point(coordinates: Any) -> tuple[float, float]:
    x, y = float(coordinates[0]), float(coordinates[1])
    if not np.isfinite([x, y]).all():
        raise ValueError(f"({x}, {y}) is no point")
    return x, y


def _polygons(geometry: dict[str, Any]) -> list[Polygon]:
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [Polygon(tuple(_ring(ring) for ring in part)) for part in parts if part]  # some are written empty


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
