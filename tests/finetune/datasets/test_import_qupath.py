"""Data sets from QuPath's annotations: points, outlines, regions, several fields of view."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from finetune.datasets.dataset import AnnotatedData
from finetune.datasets.import_qupath import Import, import_annotations
from finetune.datasets.wider_views import require_views
from shared.errors import UserError
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import Specimen, section
from tests.conftest import Command, locked_elsewhere

MPP = 0.25  # of level 0; tiles are made at twice as much


def feature(geometry: dict[str, Any], name: str | None = None, kind: str = "annotation") -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": kind}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "7f5e", "geometry": geometry, "properties": properties}


def point(x: float, y: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [x, y]}


def polygon(*corners: tuple[float, float]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[list(corner) for corner in (*corners, corners[0])]]}


def rectangle(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def write(path: Path, features: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return section(5, 400, 400)


@pytest.fixture(scope="module")
def slide(specimen: Specimen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "case-1.svs"
    write_slide(path, specimen, MPP, aperio=True)
    return path


@pytest.fixture
def imported(slide: Path, tmp_path: Path) -> Callable[..., AnnotatedData]:
    """Import features of the slide; returns the data as training reads them."""

    def run(features: list[dict[str, Any]], **options: Any) -> AnnotatedData:
        path = write(tmp_path / "case-1.geojson", features)
        assert import_annotations(Import(annotations=path, slides=slide, out=tmp_path / "data", **options)) == 0
        return load_data(DataOptions(data=tmp_path / "data"))

    return run


def tiles_of(data: AnnotatedData) -> list[Any]:
    return [tile for tiles in data.splits.values() for tile in tiles]


def test_points_in_rectangles(imported: Callable[..., AnnotatedData], specimen: Specimen) -> None:
    """Cells keep their places in the tissue: a tile's pixels at its cells are the slide's."""
    points_N2, labels_N = specimen.cells(MPP)
    boxes = [(200, 240, 840, 720), (900, 900, 1500, 1500)]
    inside = [(points_N2 >= box[:2]).all(1) & (points_N2 < box[2:]).all(1) for box in boxes]
    features = [feature(rectangle(*box)) for box in boxes]
    chosen = inside[0] | inside[1]
    names = ["tumour" if label == 1 else "stroma" for label in labels_N]
    features += [
        feature(point(*xy), name) for xy, name, use in zip(points_N2.tolist(), names, chosen, strict=True) if use
    ]
    data = imported(features, tile=256)
    tiles = tiles_of(data)
    assert sum(len(tile.labels_N) for tile in tiles) == chosen.sum() > 20
    # 320 x 240 px are two tiles, 300 x 300 four.
    assert sorted(tile.size for tile in tiles) == [(150, 150)] * 4 + [(160, 240)] * 2
    assert data.classes == ("stroma", "tumour") and data.mpp == 0.5
    rendered = specimen.render(0.5)
    with (data.folder / "tiles.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    for tile in tiles:
        row = rows[tile.image.relative_to(data.folder).as_posix()]
        left, top = (round(float(row[name]) / 2) for name in ("x", "y"))
        expected = rendered[top : top + tile.size[1], left : left + tile.size[0]]
        assert np.abs(tile.read().astype(int) - expected).mean() < 6  # JPEG and resampling
        at_N2 = tile.points_N2 + np.array([left, top])
        known_N2 = points_N2 / 2
        distance = np.linalg.norm(known_N2[None] - at_N2[:, None], axis=2)
        assert (distance.min(axis=1) < 0.01).all()
        right = [names[index] for index in distance.argmin(axis=1)]
        assert [data.classes[label] for label in tile.labels_N] == right


def test_outlines_of_cells_become_their_centres(imported: Callable[..., AnnotatedData]) -> None:
    cell = feature(polygon((300, 300), (320, 300), (320, 320), (300, 320)), "a", "cell")
    cell["nucleusGeometry"] = polygon((300, 300), (306, 300), (306, 306), (300, 306))
    detection = feature(polygon((340, 300), (364, 300), (340, 324)), "b", "detection")
    tile = feature(rectangle(0, 0, 100, 100), None, "tile")
    tile["properties"]["childObjects"] = 5
    region = feature(rectangle(200, 200, 600, 600), "Region")
    line = feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]})
    cell["properties"]["childObjects"] = [feature(point(440, 440), "b")]
    old = {"type": "Feature", "id": "PathDetectionObject", "geometry": rectangle(500, 500, 510, 510)}
    old["properties"] = {"classification": {"name": "a"}}
    several = feature({"type": "MultiPoint", "coordinates": [[400, 400], [420, 400]]}, "a")
    (only,) = tiles_of(imported([cell, detection, tile, region, line, several, old]))
    assert only.size == (200, 200)
    assert only.points_N2.tolist() == [
        [51.5, 51.5],
        [120.0, 120.0],
        [74.0, 54.0],
        [100.0, 100.0],
        [110.0, 100.0],
        [152.5, 152.5],
    ]
    assert only.labels_N.tolist() == [0, 1, 1, 0, 0, 0]


def test_what_lies_outside_a_region_is_white_and_without_cells(imported: Callable[..., AnnotatedData]) -> None:
    triangle = feature(polygon((200, 200), (600, 200), (200, 600)))
    cells = [feature(point(250, 250), "a"), feature(point(550, 550), "a")]
    (tile,) = tiles_of(imported([triangle, *cells]))
    assert tile.points_N2.tolist() == [[25.0, 25.0]]
    image = tile.read()
    assert (image[150:, 150:] == 255).all() and (image[:50, :50] < 250).mean() > 0.5


def test_without_regions_tiles_lie_around_the_cells(imported: Callable[..., AnnotatedData]) -> None:
    cells = [feature(point(x, y), "a") for x, y in ((300, 300), (310, 320), (1400, 1400))]
    tiles = tiles_of(imported(cells, tile=128))
    assert [len(tile.labels_N) for tile in tiles] == [2, 1]  # and none between
    assert {tile.slide for tile in tiles} == {"case-1"}


@pytest.mark.parametrize("side", [2502, 512.6, 640, 768])
def test_tiles_cover_the_whole_of_a_region(
    side: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells stand along the lower right corner of a region."""
    Image.new("RGB", (2600, 900), "pink").save(tmp_path / "i.png")
    rows = [10, 299.5, 599.9]
    cells = [feature(point(side - beside, y), "a") for beside in (13, 4, 1.5, 0.1) for y in rows]
    path = write(tmp_path / "i.geojson", [feature(rectangle(0, 0, side, 600)), *cells])
    config = Import(annotations=path, slides=tmp_path / "i.png", out=tmp_path / "data", slide_mpp=0.5, tile=256)
    assert import_annotations(config) == 0
    tiles = tiles_of(load_data(DataOptions(data=tmp_path / "data")))
    assert sum(len(tile.labels_N) for tile in tiles) == len(cells)
    assert "warning" not in capsys.readouterr().err
    assert {tile.size[0] for tile in tiles} == {{2502: 251, 512.6: 171, 640: 214, 768: 256}[side]}


def test_a_cell_on_the_line_between_two_tiles_is_in_one_of_them(tmp_path: Path) -> None:
    Image.new("RGB", (2600, 200), "pink").save(tmp_path / "i.png")
    columns, width, scale = 10, 72, 0.263 / 0.5
    cells = [feature(point(column * width / scale, 50), "a") for column in range(columns)]
    path = write(tmp_path / "i.geojson", [feature(rectangle(0, 0, columns * width / scale, 100)), *cells])
    words: dict[str, Any] = {"slides": tmp_path / "i.png", "slide_mpp": 0.263, "tile": width}
    assert import_annotations(Import(annotations=path, out=tmp_path / "data", **words)) == 0
    tiles = tiles_of(load_data(DataOptions(data=tmp_path / "data")))
    assert [len(tile.labels_N) for tile in tiles] == [1] * columns


GRID = [(x, y) for x in range(250, 700, 50) for y in range(250, 700, 50)]
POINTS = [feature(point(*xy), "a") for xy in GRID]


@pytest.mark.parametrize("drawn", [(rectangle(200, 200, 800, 800), "Tissue"), None])
def test_ignored_areas_are_white_and_without_cells(
    imported: Callable[..., AnnotatedData],
    capsys: pytest.CaptureFixture[str],
    drawn: tuple[dict[str, Any], str] | None,
) -> None:
    """With a region around them, and in a file of cells alone."""
    region = [feature(*drawn)] if drawn else []
    ignored = [feature(rectangle(390, 390, 610, 610), "Ignore*"), feature(point(300, 300), "Artefact*")]
    (tile,) = tiles_of(data := imported([*region, *ignored, *POINTS]))
    assert len(tile.labels_N) == 81 - 25 and data.classes == ("a",)
    corner = 200 if drawn else 250 - 10 / MPP
    low, high = (int(edge - corner) // 2 for edge in (390, 610))
    image = tile.read()
    assert (image[low + 1 : high - 1, low + 1 : high - 1] == 255).all()
    assert (image[: low - 1] < 250).mean() > 0.5
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "note:" in line)
    assert "1 areas of ignored classes (Ignore*)" in note and "1 cells of class Artefact*" in note


def test_an_ignored_area_alone_is_no_tile(imported: Callable[..., AnnotatedData]) -> None:
    with pytest.raises(UserError, match="could be cut"):
        imported([feature(rectangle(200, 200, 800, 800), "Ignore*")], classes=("a",))
    region, hidden = feature(rectangle(300, 300, 400, 400), "T"), feature(rectangle(200, 200, 800, 800), "Ignore*")
    with pytest.raises(UserError, match="could be cut"):
        imported([region, hidden, *POINTS])


def test_nested_and_overlapping_regions_give_every_cell_once(
    imported: Callable[..., AnnotatedData], capsys: pytest.CaptureFixture[str]
) -> None:
    regions = [
        feature(rectangle(200, 200, 800, 800), "Tissue"),
        feature(rectangle(300, 300, 500, 500), "Tumor"),
        feature(rectangle(700, 100, 900, 300), "Edge"),
    ]
    data = imported([*regions, *POINTS], tile=128)
    assert sum(len(tile.labels_N) for tile in tiles_of(data)) == 81
    with (data.folder / "tiles.csv").open(newline="") as file:
        boxes = [[float(row[name]) for name in ("x", "y", "width", "height")] for row in csv.DictReader(file)]
    count = np.zeros((1000, 1000), int)
    for x, y, width, height in boxes:
        count[round(y) : round(y + 2 * height), round(x) : round(x + 2 * width)] += 1
    assert count.max() == 1 and (count[200:800, 200:800] == 1).all()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert all(word in warnings[0] for word in ("Edge, Tissue, Tumor", "overlap", "--region-class"))


def test_a_cell_on_the_line_between_two_regions_is_in_one_of_them(imported: Callable[..., AnnotatedData]) -> None:
    regions = [
        feature(polygon((x, 200), (x + 301, 200), (x + 301, 600), (x + 150, 700), (x, 600))) for x in (200, 501)
    ]
    cells = [feature(point(501, y), "a") for y in range(220, 600, 20)]
    data = imported([*regions, *cells])
    assert len(tiles_of(data)) == 2
    assert sum(len(tile.labels_N) for tile in tiles_of(data)) == len(cells)


def test_regions_of_one_class(imported: Callable[..., AnnotatedData], capsys: pytest.CaptureFixture[str]) -> None:
    regions = [
        feature(rectangle(200, 200, 800, 800), "Tissue"),
        feature(rectangle(290, 290, 510, 510), "Region*"),
        feature(rectangle(1000, 1000, 1200, 1200), "Region*"),
    ]
    first, second = tiles_of(imported([*regions, *POINTS], region_class=("Region*",)))
    assert first.size == (110, 110) and len(first.labels_N) == 25 and not len(second.labels_N)
    error = capsys.readouterr().err
    assert "1 of 2 regions in" in error and "56 of 81 cells" in error and "overlap" not in error


def test_a_class_that_no_region_has(
    imported: Callable[..., AnnotatedData], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="could be cut"):
        imported([feature(rectangle(200, 200, 800, 800), "Tissue"), *POINTS], region_class=("Tumour",))
    assert "case-1.geojson has no region of --region-class; its regions: Tissue" in capsys.readouterr().err


def test_nuclei_of_cellvit(imported: Callable[..., AnnotatedData]) -> None:
    """Outlines of a class in one MultiPolygon, and cells without a class."""
    nuclei = [rectangle(x - 5, y - 5, x + 5, y + 5)["coordinates"] for x, y in GRID]
    whole = feature({"type": "MultiPolygon", "coordinates": nuclei}, "Neoplastic")
    other = feature(rectangle(700, 700, 710, 710))
    with pytest.raises(UserError, match="--outlines cells"):
        imported([whole])
    (tile,) = tiles_of(data := imported([whole, other], outlines="cells", unclassified="other"))
    assert data.classes == ("Neoplastic", "other") and np.bincount(tile.labels_N).tolist() == [81, 1]


def test_annotations_are_parsed_once(
    imported: Callable[..., AnnotatedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: (parsed.append(text), loads(text, **options))[1])
    imported(POINTS)
    assert sum("FeatureCollection" in text for text in parsed) == 1


def test_fields_of_view(imported: Callable[..., AnnotatedData], specimen: Specimen) -> None:
    cells = [feature(rectangle(640, 640, 960, 960)), feature(point(800, 800), "a")]
    data = imported(cells, views=3)
    (tile,) = tiles_of(data)
    require_views([tile], 3)
    views_KHWC = tile.read_views(3)
    for view, factor in ((views_KHWC[1], 2), (views_KHWC[0], 4)):
        centre = view[80 - 80 // factor : 80 + 80 // factor, 80 - 80 // factor : 80 + 80 // factor]
        small = np.asarray(Image.fromarray(views_KHWC[2]).reduce(factor))
        assert np.abs(centre.astype(int) - small).mean() < 8


def test_slides_of_a_folder_stay_in_one_split(command: Command, slide: Path, tmp_path: Path) -> None:
    """The command as typed, with summaries of predictions beside the annotations."""
    slides, annotations = tmp_path / "slides", tmp_path / "annotations"
    (slides / "sub").mkdir(parents=True)
    annotations.mkdir()
    for number in range(5):
        place = slides / ("sub" if number == 4 else "") / f"case-{number}.svs"
        place.symlink_to(slide)
        cells = [feature(point(300 + 300 * n, 400), "a" if number else "b") for n in range(4)]
        write(annotations / (f"case-{number}.geojson" if number else "case-0.svs.GeoJSON"), cells)
    (annotations / "case-1.summary.json").write_text("{}")
    words = ("--slides", slides, "--out", "data", "--tile", 128, "--classes", "A=a", "B=b")
    done = command("finetune.datasets", "import", annotations, *words)
    assert done.returncode == 0, done.stderr
    assert "5 slides, 20 cells: A, B" in done.stdout
    data = load_data(DataOptions(data=tmp_path / "data"))
    where = {name: {tile.slide for tile in tiles} for name, tiles in data.splits.items()}
    assert {name: len(keys) for name, keys in where.items()} == {"train": 3, "val": 1, "test": 1}
    assert len(set.union(*where.values())) == 5


def test_into_the_empty_folder_that_one_stands_in(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "case-1.geojson", [feature(point(300, 300), "a")])
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    assert import_annotations(Import(annotations=path, slides=slide, out=Path())) == 0
    assert len(tiles_of(load_data(DataOptions(data=Path())))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"case-1.geojson", "data"}


def test_wrong_input_ends_in_one_sentence(slide: Path, tmp_path: Path) -> None:
    good = [feature(point(300, 300), "a")]
    for name, content, options, sentence in [
        ("case-1.geojson", "no json", {}, "is not JSON"),
        ("case-1.geojson", "[" * 100_000, {}, "is not JSON"),
        ("case-1.geojson", '{"a": 1}', {}, "case-1.geojson is JSON, but not GeoJSON"),
        ("case-1.geojson", [feature(point(300, 300))], {}, r"case-1\.geojson has a class"),
        ("case-1.geojson", [feature(point(9000, 300), "a")], {}, r"has a cell at \(9000, 300\), outside"),
        ("case-1.geojson", [feature(rectangle(9000, 0, 9100, 100)), *good], {}, "a region is outside"),
        ("case-1.geojson", [feature({"type": "Point", "coordinates": ["x"]}, "a")], {}, "feature 1: .* malformed"),
        ("case-1.geojson", [feature(rectangle(0, 0, 99, 99))], {}, "has no cells .*--outlines cells.*--classes"),
        ("case-1.geojson", good, {"classes": ("b",)}, "has cells of class 'a'; name it in --classes as well"),
        ("case-1.geojson", good, {"mpp": 0.1}, "nothing in .* could be cut into tiles"),
        ("case-1.geojson", good, {"tile": 10}, "--tile 10 is out of range"),
        ("case-1.geojson", good, {"views": 0}, "--views 0 is out of range"),
        ("case-1.geojson", good, {"annotations": tmp_path / "none"}, "there is no GeoJSON file or folder"),
        ("other.geojson", good, {"annotations": tmp_path, "slides": slide.parent}, "belongs to no slide"),
    ]:
        for old in tmp_path.glob("*.geojson"):
            old.unlink()
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        settings: dict[str, Any] = {"annotations": path, "slides": slide, "out": tmp_path / "data", **options}
        with pytest.raises(UserError, match=sentence) as caught:
            import_annotations(Import(**settings))
        assert "\n" not in str(caught.value)
        assert {path.suffix for path in tmp_path.iterdir()} <= {".geojson"}  # nothing half done
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").touch()
    with pytest.raises(UserError, match="exists already; give a new folder"):
        import_annotations(Import(annotations=path, slides=slide, out=tmp_path / "data"))


def test_another_import_into_the_same_folder_is_left_alone(
    imported: Callable[..., AnnotatedData], tmp_path: Path
) -> None:
    tile = tmp_path / ".data.partial/images/case-1_0000.png"
    tile.parent.mkdir(parents=True)
    tile.touch()
    with (
        locked_elsewhere(tmp_path / ".data.partial/.lock"),
        pytest.raises(UserError, match=r"another import writes --out .*data; wait for it"),
    ):
        imported([feature(point(100, 100), "tumour")])
    assert tile.exists()
    imported([feature(point(100, 100), "tumour")])  # the other one has died
    assert not tile.exists()
