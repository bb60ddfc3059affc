"""Read the cells of one image from JSON: `[{"x", "y", "class"}, ...]`, `{class: [[x, y], ...]}`, or GeoJSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.datasets.annotations import geojson_file
from finetune.datasets.annotations.listed_cells import ListedCell
from shared.annotations.bounded_files import read_json
from shared.annotations.features import class_value, features_of
from shared.errors import UserError


def list_cells(path: Path) -> Iterator[ListedCell]:
    """List the cells of a JSON file; GeoJSON is recognised by content, since QuPath's scripts write .json too.

    Raises:
        UserError: the file is not JSON, or has none of the forms.
    """
    content = read_json(path)
    features = features_of(content)
    if features is not None:
        yield from geojson_file.list_cells(path, features)
    elif isinstance(content, list):
        yield from _entries(path, content)
    elif isinstance(content, dict):
        yield from _points_by_class(path, content)
    else:
        raise UserError(f'{path} holds neither [{{"x", "y", "class"}}, ...] nor {{class: [[x, y], ...]}}')


def _entries(path: Path, content: list[Any]) -> Iterator[ListedCell]:
    for number, entry in enumerate(content, 1):
        where = f"{path}, entry {number}"
        if not (isinstance(entry, dict) and entry.keys() >= {"x", "y", "class"}):
            raise UserError(f'{where}: it is not an object with "x", "y" and "class"')
        value = entry["class"]
        yield ListedCell(where, entry["x"], entry["y"], "" if value is None else class_value(str(value)))


def _points_by_class(path: Path, content: dict[str, Any]) -> Iterator[ListedCell]:
    for name, points in content.items():
        if not isinstance(points, list):
            raise UserError(f"{path}: the value of {name!r} is not a list of points [x, y]")
        for number, point in enumerate(points, 1):
            where = f"{path}, {name!r}, point {number}"
            if not (isinstance(point, list) and len(point) == 2):
                raise UserError(f"{where}: it is not a point [x, y]")
            yield ListedCell(where, point[0], point[1], class_value(name))
