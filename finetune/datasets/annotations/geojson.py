"""The annotation of one image as QuPath exports it: GeoJSON features that are classified points."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.datasets.annotations.cells import ListedCell, class_value
from shared.errors import UserError


def features_of(content: Any) -> list[Any] | None:
    """The features in a parsed file: a collection, QuPath's bare list, or a single one; None: no GeoJSON."""
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        return list(content["features"])
    if kind == "Feature":
        return [content]
    first = content[0] if isinstance(content, list) and content else None
    return content if isinstance(first, dict) and first.get("type") == "Feature" else None


def list_cells(path: Path, features: list[Any]) -> Iterator[ListedCell]:
    """The cells among the features: one for a Point, as many as it has for a MultiPoint.

    Raises:
        UserError: a feature is something else, or has no class.
    """
    for number, feature in enumerate(features, 1):
        where = f"{path}, feature {number}"
        feature = feature if isinstance(feature, dict) else {}
        points = _points_of(feature, where)
        value = class_of(feature, where)
        for point in points:
            if not (isinstance(point, list) and len(point) >= 2):
                raise UserError(f"{where}: {point!r} is not a point [x, y]")
            yield ListedCell(where, point[0], point[1], value)


def _points_of(feature: dict[str, Any], where: str) -> list[Any]:
    geometry = mapping_of(feature.get("geometry"))
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "Point":
        return [coordinates]
    if kind == "MultiPoint" and isinstance(coordinates, list):
        return coordinates
    raise UserError(f"{where}: it is a {kind or 'feature without geometry'}, not a Point; export the points alone")


def class_of(feature: dict[str, Any], where: str) -> str:
    """The name of the class; QuPath lists the parts of a derived one, and shows them joined by colons.

    Raises:
        UserError: there is none.
    """
    given = mapping_of(mapping_of(feature.get("properties")).get("classification"))
    name = class_value(str(given.get("name") or ": ".join(map(str, list_of(given.get("names"))))))
    if not name:
        raise UserError(f"{where}: it has no classification; give every point a class in QuPath")
    return name


def mapping_of(value: Any) -> dict[str, Any]:
    """A JSON object; empty in the place of anything else."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """A JSON array; empty in the place of anything else."""
    return value if isinstance(value, list) else []
