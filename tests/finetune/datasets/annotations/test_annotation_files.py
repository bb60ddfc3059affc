"""JSON and QuPath GeoJSON annotations: the same cells as from CSV; what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from shared.errors import UserError


def point(x: float, y: float, name: str | None = "Tumor", **extra: Any) -> dict[str, Any]:
    """Return a feature as QuPath 0.5 exports a point annotation."""
    classification = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    return {
        "type": "Feature",
        "id": "8d3a8f0e-6c1c-4a59-93f6-3f1e6b3f0c55",
        "geometry": {"type": "Point", "coordinates": [x, y]},
        "properties": {"objectType": "annotation", **classification},
        **extra,
    }


def multi(points: list[tuple[float, float]], name: str) -> dict[str, Any]:
    return point(0, 0, name, geometry={"type": "MultiPoint", "coordinates": points, "plane": {"c": -1, "z": 0}})


def write(folder: Path, name: str, content: object) -> None:
    """Write an image and its annotation in a file of that name, and a second image for the other split."""
    for kind in ("images", "points"):
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "val" / kind).mkdir(parents=True, exist_ok=True)
    for image in (folder / "train/images/a.png", folder / "val/images/b.png"):
        Image.new("RGB", (32, 32), "white").save(image)
    (folder / "val/points/b.csv").write_text("x,y,class\n")
    (folder / "train/points" / name).write_text(content if isinstance(content, str) else json.dumps(content))


def cells_of(folder: Path, **given: Any) -> tuple[tuple[str, ...], list, list]:
    data = load_data(DataOptions(data=folder, slide_mpp=0.5, **given))
    tile = data.splits["train"][0]
    return data.classes, tile.points_N2.tolist(), tile.labels_N.tolist()


CELLS = [[1.5, 2.5], [3, 4], [5, 6.25]]
QUPATH = [multi([(1.5, 2.5), (3, 4)], "Immune cells"), point(5, 6.25, "Tumor")]


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("a.csv", "x,y,class\n1.5,2.5,1\n3,4,1\n5,6.25,2\n", ("class 1", "class 2")),
        (
            "a.json",
            [{"x": x, "y": y, "class": c, "note": ""} for (x, y), c in zip(CELLS, (1, 1.0, "2"), strict=True)],
            ("class 1", "class 2"),
        ),
        ("a.json", {"1.0": CELLS[:2], "2": CELLS[2:]}, ("class 1", "class 2")),
        ("a.json", {"lymphocyte": CELLS[:2], "tumour": CELLS[2:], "empty": []}, ("lymphocyte", "tumour")),
        ("a.geojson", {"type": "FeatureCollection", "features": QUPATH}, ("Immune cells", "Tumor")),
        ("a.geojson", QUPATH, ("Immune cells", "Tumor")),
        ("a.json", QUPATH, ("Immune cells", "Tumor")),
    ],
)
def test_every_form_holds_the_same_cells(tmp_path: Path, name: str, content: object, classes: tuple) -> None:
    write(tmp_path, name, content)
    assert cells_of(tmp_path) == (classes, CELLS, [0, 0, 1])


def test_forms_can_be_mixed_and_classes_named(tmp_path: Path) -> None:
    write(tmp_path, "a.geojson", QUPATH)
    (tmp_path / "val/points/b.csv").unlink()
    (tmp_path / "val/points/b.json").write_text('{"Stroma": [[1, 1]]}')
    classes, _, labels = cells_of(tmp_path, classes=("tumour=Tumor", "Stroma", "immune=Immune cells"))
    assert (classes, labels) == (("tumour", "Stroma", "immune"), [2, 2, 0])


def test_derived_classes_of_qupath(tmp_path: Path) -> None:
    derived = point(1, 1, None)
    derived["properties"]["classification"] = {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}
    write(tmp_path, "a.geojson", [derived, point(2, 2, "Tumor: Negative")])
    assert cells_of(tmp_path)[0] == ("Tumor: Negative", "Tumor: Positive")


def test_points_of_ignored_classes_are_dropped_and_counted(tmp_path: Path) -> None:
    points = [point(1, 1, "Ignore*"), point(2, 2, "Tumor"), point(3, 3, "Ignore*")]
    write(tmp_path, "a.geojson", points)
    data = load_data(DataOptions(data=tmp_path, slide_mpp=0.5))
    assert data.classes == ("Tumor",) and data.splits["train"][0].points_N2.tolist() == [[2, 2]]
    (note,) = (line for line in data.notes() if "Ignore*" in line)
    assert "2 cells" in note
    assert cells_of(tmp_path, classes=("debris=Ignore*", "Tumor"))[2] == [0, 1, 0]  # unless they are named


def test_spellings_of_nan_are_no_class(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "x,y,class\n1,1,a\n2,2,nan\n")
    with pytest.raises(UserError, match=r"a\.csv, line 3: .*no class"):
        cells_of(tmp_path)


def test_files_without_cells(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [])
    with pytest.raises(UserError, match=r"no annotation in .* has a cell, .* name them with --classes"):
        load_data(DataOptions(data=tmp_path, slide_mpp=0.5))
    for name, content in (
        ("a.json", []),
        ("a.json", {}),
        ("a.geojson", {"type": "FeatureCollection", "features": []}),
    ):
        write(tmp_path, name, content)
        data = load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=("cell",)))
        np.testing.assert_array_equal(data.splits["train"][0].points_N2, np.empty((0, 2)))
        (tmp_path / "train/points" / name).unlink()


NAMES = point(1, 1, None, properties={"classification": {"names": 5}})
POLYGON = point(1, 1, geometry={"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]})


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", [{"x": 1, "y": 2}], r'a\.json, entry 1: it is not an object with "x", "y" and "class"'),
        ("a.json", [[1, 2, 1]], r"a\.json, entry 1: it is not an object"),
        ("a.json", [{"x": 1, "y": "two", "class": "cell"}], r"entry 1: x=1, y='two' are not two numbers"),
        ("a.json", [{"x": 1, "y": [2], "class": "cell"}], r"entry 1: x=1, y=\[2\] are not two numbers"),
        ("a.json", [{"x": 1, "y": 10**400, "class": "cell"}], r"entry 1: .* are not two numbers"),
        ("a.json", [{"x": 1, "y": 2, "class": None}], r"a\.json, entry 1: .*no class"),
        (
            "a.json",
            {"cell": [[1, 2]], "other": [[1, 2]]},
            r"a\.json, 'other', point 1: class 'other' is none of cell",
        ),
        ("a.json", {"cell": [[1, 2], [1, 2, 3]]}, r"a\.json, 'cell', point 2: it is not a point \[x, y\]"),
        ("a.json", {"cell": [[1, 2], [1, 40]]}, r"'cell', point 2: the point \(1, 40\) is outside .* 32x32 px"),
        ("a.json", {"cell": 3}, r"a\.json: the value of 'cell' is not a list"),
        ("a.json", "5", r"a\.json holds neither"),
        ("a.json", "[{", r"a\.json is not JSON"),
        pytest.param("a.json", "[" * 100_000, r"a\.json is not JSON", id="nested deeply"),
        ("a.json", "[NaN, {}]", r"a\.json, entry 1: it is not an object"),
        (
            "a.geojson",
            [point(1, 1, "cell"), POLYGON],
            r"a\.geojson, feature 2: it is a Polygon, not a Point; export",
        ),
        ("a.geojson", [point(1, 1, None)], r"a\.geojson, feature 1: it has no classification"),
        ("a.geojson", [NAMES], r"a\.geojson, feature 1: it has no classification"),
        ("a.geojson", [point(1, 1, "cell"), 5], r"a\.geojson, feature 2: it is a feature without geometry"),
        ("a.geojson", [multi([(1, 1), (40, 1)], "cell")], r"feature 1: the point \(40, 1\) is outside"),
        ("a.geojson", [multi([(1,)], "cell")], r"a\.geojson, feature 1: \[1\] is not a point"),
    ],
)
def test_a_bad_annotation_is_named_with_its_place(
    tmp_path: Path, name: str, content: object, sentence: str
) -> None:
    write(tmp_path, name, content)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=("cell",)))


def test_two_annotations_for_one_image_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [])
    write(tmp_path, "a.csv", "x,y,class\n")
    with pytest.raises(UserError, match=r"a\.csv and a\.json share one name; rename or remove one"):
        load_data(DataOptions(data=tmp_path, slide_mpp=0.5))
