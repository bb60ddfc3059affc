"""Objects of QuPath's exports and of tools that write like it: which are cells, which regions, which neither."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.annotations.qupath import read_objects, read_regions
from shared.errors import UserError

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
Geometry = dict[str, Any]


def feature(geometry: Geometry, classification: Any = None, kind: str = "annotation") -> dict[str, Any]:
    properties = {"objectType": kind} | ({} if classification is None else {"classification": classification})
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def point(x: float, y: float) -> Geometry:
    return {"type": "Point", "coordinates": [x, y]}


def square(x: float, y: float, side: float = 10) -> list[list[list[float]]]:
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]]


def polygon(x: float, y: float, side: float = 10) -> Geometry:
    return {"type": "Polygon", "coordinates": square(x, y, side)}


def write(path: Path, features: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize(
    "classification",
    [
        {"name": "Tumor: Positive", "color": [1, 2, 3]},
        {"names": ["Tumor", "Positive"]},
        "Tumor: Positive",
        json.dumps({"name": "Tumor: Positive", "color": [1, 2, 3]}),  # geopandas
        json.dumps({"names": ["Tumor", "Positive"]}),
        '"Tumor: Positive"',
    ],
)
def test_spellings_of_a_class(tmp_path: Path, classification: Any) -> None:
    path = write(
        tmp_path / "a.geojson", [feature(point(1, 2), classification), feature(polygon(0, 0), classification)]
    )
    objects = read_objects(path)
    assert objects.names == ["Tumor: Positive"] and objects.regions[0].name == "Tumor: Positive"


@pytest.mark.parametrize("empty", [None, "", "nan", {"name": float("nan")}, {"name": ""}, "{damaged"])
def test_cells_without_a_class(tmp_path: Path, empty: Any) -> None:
    cells = [feature(point(1, 2), empty), feature(polygon(5, 5), empty, "detection")]
    if empty == "{damaged":
        assert read_objects(write(tmp_path / "a.geojson", cells)).names == ["{damaged"] * 2
        return
    with pytest.raises(UserError, match=r"none of the 2 cells in .*a\.geojson.*--unclassified"):
        read_objects(write(tmp_path / "a.geojson", cells))
    with pytest.raises(UserError, match=r"a\.geojson, feature 2: .*--unclassified"):
        read_objects(write(tmp_path / "a.geojson", [feature(point(1, 2), "b"), *cells[1:]]))
    assert read_objects(tmp_path / "a.geojson", unclassified="nucleus").names == ["b", "nucleus"]


def test_ignored_classes_are_neither_cells_nor_regions(tmp_path: Path) -> None:
    objects = read_objects(
        write(
            tmp_path / "a.geojson",
            [
                feature(polygon(0, 0, 100), "Tissue"),
                feature(polygon(20, 20), "Ignore*"),
                feature(polygon(40, 40), {"names": ["Stroma", "Artefact*"]}),
                feature(polygon(200, 0, 50), "Region*"),  # QuPath's own class of areas to annotate
                feature(point(1, 1), "Ignore*"),
                feature(polygon(2, 2), "Necrosis*", "detection"),
                feature(point(3, 3), "Tumor"),
            ],
        )
    )
    assert objects.names == ["Tumor"] and objects.points_N2.tolist() == [[3, 3]]
    assert [region.name for region in objects.regions] == ["Tissue", "Region*"]
    assert [region.name for region in objects.ignored] == ["Ignore*", "Stroma: Artefact*"]
    assert "\n" not in objects.note()
    for words in ("2 areas", "Stroma: Artefact*", "1 cells of class Ignore*", "1 cells of class Necrosis*"):
        assert words in objects.note()
    regions, ignored = objects.choose(["Ignore*"])  # named, it is a region like others
    assert [region.name for region in regions] == ["Ignore*"] and len(ignored) == 1


def test_every_polygon_of_a_class_is_a_cell(tmp_path: Path) -> None:
    """CellViT writes the outlines of each class as one MultiPolygon, and their centres as one MultiPoint."""
    outlines = feature(
        {"type": "MultiPolygon", "coordinates": [square(20 * n, 0) for n in range(50)]}, "Neoplastic"
    )
    others = feature(
        {"type": "MultiPolygon", "coordinates": [square(20 * n, 40) for n in range(7)]}, "Inflammatory"
    )
    path = write(tmp_path / "a.geojson", [outlines, others])
    objects = read_objects(path, "cells")
    assert objects.names == ["Neoplastic"] * 50 + ["Inflammatory"] * 7
    np.testing.assert_allclose(objects.points_N2[:50], [[20 * n + 5, 5] for n in range(50)])
    assert len(read_objects(path).regions) == 57
    assert not objects.note()


def test_outlines_that_are_left_out_are_counted(tmp_path: Path) -> None:
    pieces = {"type": "MultiPolygon", "coordinates": [square(0, 0, 2), square(20, 20, 4), square(40, 0, 2)]}
    lines = feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]})
    path = write(
        tmp_path / "a.geojson", [feature(pieces, "a", "detection"), feature(polygon(0, 0), None, "tile"), lines]
    )
    objects = read_objects(path)
    assert objects.points_N2.tolist() == [[22, 22]]  # an object of QuPath is one cell, though it is in pieces
    assert "2 smaller outlines of a detection (--outlines cells" in objects.note()
    assert "1 objects of type tile" in objects.note() and "1 objects of type LineString" in objects.note()
    assert len(read_objects(path, "cells").names) == 3


def test_detections_are_no_regions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.geojson",
        [
            feature(polygon(0, 0, 50), "Tumor"),
            feature(polygon(5, 5), None, "detection"),
            feature(polygon(9, 9), "a", "cell"),
        ],
    )
    objects = read_regions(path)
    assert [region.polygon.bounds for region in objects.regions] == [(0, 0, 50, 50)]


def test_outlines_as_people_draw_them(tmp_path: Path) -> None:
    """Lines that cross or go back, empty polygons, outlines without area, a third coordinate."""
    crossing = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    back = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [0, 0]]]}
    deep = {"type": "Polygon", "coordinates": [[[*corner, 0] for corner in SQUARE]]}
    empty = {"type": "MultiPolygon", "coordinates": [[], square(0, 0)]}
    path = write(tmp_path / "a.geojson", [feature(each) for each in (crossing, back, deep, empty)])
    assert [region.polygon.area for region in read_objects(path).regions] == [50, 0, 100, 100]
    with pytest.raises(UserError, match=r"a\.geojson, feature 2: "):
        read_objects(
            write(path, [feature(deep), feature({"type": "Polygon", "coordinates": [[[0, 0], [1, "x"]]]})])
        )


def test_objects_move_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.geojson",
        [feature(polygon(0, 0)), feature(polygon(2, 2, 1), "x*"), feature(point(1, 1), "a")],
    )
    moved = read_objects(path).shifted(100, 200)
    assert moved.points_N2.tolist() == [[101, 201]]
    assert moved.regions[0].polygon.bounds == (100, 200, 110, 210)
    assert moved.ignored[0].polygon.bounds == (102, 202, 103, 203)


def test_20_000_outlines_are_read_in_seconds(tmp_path: Path) -> None:
    angles = np.linspace(0, 2 * np.pi, 20)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 4
    circle[-1] = circle[0]
    places = np.stack(np.meshgrid(np.arange(100), np.arange(200)), axis=-1).reshape(-1, 2) * 10
    features = [
        feature({"type": "Polygon", "coordinates": [(circle + place).round(2).tolist()]}, "a", "detection")
        for place in places
    ]
    path = write(tmp_path / "a.geojson", features)
    begin = time.process_time()
    objects = read_objects(path)
    assert time.process_time() - begin < 10  # 2 s where nothing else runs
    np.testing.assert_allclose(objects.points_N2, places, atol=0.01)
