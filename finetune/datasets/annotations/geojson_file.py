"""Read the cells of one image from GeoJSON: classified points, as QuPath exports them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.datasets.annotations.listed_cells import ListedCell
from shared.annotations.features import class_of, mapping_of
from shared.errors import UserError


def list_cells(path: Path, features: list[Any]) -> Iterator[ListedCell]:
    """List the cells of the features: one for a Point, one for each point of a MultiPoint.

    Raises:
        UserError: a feature is something else, or has no class.
    """
    for number, feature in enumerate(features, 1):
        where = f"{path}, feature {number}"
        points = _points_of(mapping_of(feature), where)
        value = class_of(mapping_of(feature))
        if not value:
            raise UserError(f"{where}: it has no classification; give every point a class in QuPath")
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
    raise UserError(f"{where}: it is a {kind or 'feature without geometry'}, not a Point; export only points")
