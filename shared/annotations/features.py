"""GeoJSON features as QuPath, geopandas and others write them: class, kind of object, rings of outlines."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

OUTLINES = ("Polygon", "MultiPolygon")
# Kinds of objects in QuPath 0.2, which writes them in place of an identifier.
LEGACY_KINDS = {
    "PathCellObject": "cell",
    "PathDetectionObject": "detection",
    "PathTileObject": "tile",
    "PathAnnotationObject": "annotation",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
MALFORMED = (TypeError, ValueError, KeyError, IndexError)

Feature = dict[str, Any]
Rings = list[np.ndarray]
"""Outline of an area, then its holes; each corners (N, 2)."""


def features_of(content: Any) -> list[Any] | None:
    """Return the features of parsed GeoJSON: of a collection, of QuPath's bare list, or a single one.

    Returns:
        None if the content is not GeoJSON.
    """
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        return list(content["features"])
    if kind == "Feature":
        return [content]
    first = content[0] if isinstance(content, list) and content else None
    return content if isinstance(first, dict) and first.get("type") == "Feature" else None


def with_children(features: list[Any]) -> Iterator[Feature]:
    """Walk features in order, and those nested in them where a whole hierarchy was exported."""
    waiting = features[::-1]  # a stack: a hierarchy may be deeper than Python's calls
    while waiting:
        feature = mapping_of(waiting.pop())
        yield feature
        properties = mapping_of(feature.get("properties"))
        children = properties.get("childObjects") or properties.get("children")
        waiting += children[::-1] if isinstance(children, list) else []


def kind_of(feature: Feature) -> str:
    """Return QuPath's kind of object (annotation, detection, cell, tile, ...); empty if none is given."""
    properties = mapping_of(feature.get("properties"))
    kinds = [properties.get(name) for name in ("objectType", "object_type", "type")]
    return next((str(kind) for kind in kinds if kind), LEGACY_KINDS.get(str(feature.get("id")), ""))


def class_of(feature: Feature) -> str:
    """Return the name of a feature's class, parts of a derived one joined by colons; empty if it has none.

    QuPath writes an object with the name, or with the names of the parts; others write the name itself, or either
    as a JSON string.
    """
    given = mapping_of(feature.get("properties")).get("classification")
    if isinstance(given, str) and given.lstrip().startswith(("{", '"')):
        with suppress(ValueError, RecursionError):
            given = json.loads(given)
    if isinstance(given, str):
        return class_value(given)
    names = mapping_of(given).get("names")
    joined = ": ".join(map(str, names)) if isinstance(names, list) else ""
    return class_value(str(mapping_of(given).get("name") or joined))


def class_value(text: str) -> str:
    """Normalise a class: data frames write whole numbers as 1.0, and nan in place of a missing class."""
    text = text.strip()
    whole = re.fullmatch(r"(-?\d+)\.0*", text, re.ASCII)
    return whole[1] if whole else "" if text.lower() == "nan" else text


def is_ignored(name: str) -> bool:
    """Test for one of QuPath's ignored classes, whose names end in an asterisk (Ignore*, Artefact*)."""
    return name.endswith("*")


def rings_as_arrays(entry: dict[str, Any]) -> dict[str, Any]:
    """Replace an outline's nested lists by arrays, as `read_json` parses it: a tenth of the memory."""
    if entry.get("type") in OUTLINES:
        with suppress(*MALFORMED):  # reported by the caller that uses the outline, with its place
            entry["coordinates"] = polygons_of(entry)
            entry["type"] = "MultiPolygon"
    return entry


def polygons_of(geometry: dict[str, Any]) -> list[Rings]:
    """Return the rings of each polygon of an outline; empty polygons, which some tools write, are dropped.

    Raises:
        ValueError, TypeError, KeyError, IndexError: the geometry is malformed.
    """
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [[_ring(ring) for ring in part] for part in parts if part]


def point_of(coordinates: Any) -> tuple[float, float]:
    """Return x and y.

    Raises:
        ValueError, TypeError, IndexError: they are not two finite numbers.
    """
    x, y = float(coordinates[0]), float(coordinates[1])
    if not np.isfinite([x, y]).all():
        raise ValueError(f"({x}, {y}) is not a point")
    return x, y


def mapping_of(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is, and anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def _ring(coordinates: Any) -> np.ndarray:
    if isinstance(coordinates, np.ndarray):
        return coordinates
    ring = np.array([corner[:2] for corner in coordinates], np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("an outline has no three corners")
    return ring if len(ring) > 3 else np.concatenate([ring, ring[:1]])
