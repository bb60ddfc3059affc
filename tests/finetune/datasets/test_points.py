"""The plain layout: what is read, what is refused, and in which words."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import Source, load_data
from shared.command_line import UserError


def write(folder: Path, names: list[str], rows: str = "x,y,class\n1.5,2.5,1\n3,4,2\n", size: int = 32) -> None:
    for name in names:
        for kind in ("images", "points"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), "white").save(folder / "images" / f"{name}.png")
        (folder / "points" / f"{name}.csv").write_text(rows)


def describe(folder: Path, **fields: object) -> None:
    classes = [{"name": "negative", "value": 1}, {"name": "positive", "value": 2}]
    content = {"mpp": 0.5, "classes": classes, "origin": "corner", **fields}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_points_classes_and_origin(tmp_path: Path) -> None:
    write(tmp_path / "train", ["TCGA-A7.x_0.9824", "überall 2"])
    describe(tmp_path)
    data = load_data(Source(data=tmp_path))
    assert data.classes == ("negative", "positive")
    tile = next(t for t in data.splits["train"] + data.splits.get("val", []) if "TCGA" in t.image.name)
    np.testing.assert_array_equal(tile.points_N2, [[1.5, 2.5], [3, 4]])
    np.testing.assert_array_equal(tile.labels_N, [0, 1])
    shifted = load_data(Source(data=tmp_path, origin="pixel_index"))
    np.testing.assert_array_equal(shifted.splits["train"][0].points_N2, [[2, 3], [3.5, 4.5]])


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"])
    describe(tmp_path)
    data = load_data(Source(data=tmp_path, slide_mpp=0.25, classes=("tumour=2", "other=1")))
    assert (data.mpp, data.classes) == (0.25, ("tumour", "other"))
    np.testing.assert_array_equal(data.splits["train"][0].labels_N, [1, 0])


def test_classes_come_from_the_files_where_nothing_names_them(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"], "x,y,class\n1,1,10\n2,2,9\n3,3,lymph\n")
    assert load_data(Source(data=tmp_path, slide_mpp=0.5)).classes == ("class 9", "class 10", "lymph")


def test_a_flat_folder_is_dealt_out_by_slide(tmp_path: Path) -> None:
    names = [f"s{slide}_{tile}" for slide in range(10) for tile in range(3)]
    write(tmp_path, names)
    describe(tmp_path, slides={f"images/{name}.png": name.split("_")[0] for name in names})
    splits = load_data(Source(data=tmp_path)).splits
    assert {name: len(tiles) for name, tiles in splits.items()} == {"train": 18, "val": 6, "test": 6}
    slides = [{tile.slide for tile in tiles} for tiles in splits.values()]
    assert not (slides[0] & slides[1] or slides[0] & slides[2] or slides[1] & slides[2])


def test_an_image_without_cells_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"], "x,y,class\n")
    describe(tmp_path)
    assert len(load_data(Source(data=tmp_path)).splits["train"][0].labels_N) == 0


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("x,y,class\n1,2,1\nfoo,2,1\n", r"a\.csv, line 3: x='foo', y='2' are not two numbers"),
        ("x,y,class\n1,2,1\n1,2\n", r"a\.csv, line 3: class '' is none of 1 \(negative\), 2 \(positive\)"),
        ("x,y,class\n1,2,7\n", r"a\.csv, line 2: class '7' is none of"),
        ("x,y,class\n1,200,1\n", r"a\.csv, line 2: the point \(1, 200\) lies outside its image of 32x32 px"),
        ("x,y,class\nnan,2,1\n", r"a\.csv, line 2: the point \(nan, 2\) lies outside"),
        ("1,2,1\n", r"a\.csv has no header with the columns x,y,class"),
        ("", r"a\.csv has no header"),
        ("\xff\xfe\x00", r"a\.csv is not a CSV text file"),
    ],
)
def test_a_bad_annotation_is_named_with_its_line(tmp_path: Path, rows: str, sentence: str) -> None:
    write(tmp_path / "train", ["a", "b"])
    (tmp_path / "train/points/a.csv").write_bytes(rows.encode("latin-1"))
    describe(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_data(Source(data=tmp_path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no annotated data at .*nowhere; give its folder with --data.*images,points"
    ):
        load_data(Source(data=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="none of the known layouts"):
        load_data(Source(data=tmp_path))
    write(tmp_path / "train", ["a", "b"])
    with pytest.raises(UserError, match=r"does not say its resolution.*--slide-mpp"):
        load_data(Source(data=tmp_path))
    describe(tmp_path)
    (tmp_path / "train/points/a.csv").unlink()
    with pytest.raises(UserError, match=r"images/a\.png has no annotation .*points/a\.csv"):
        load_data(Source(data=tmp_path))
    (tmp_path / "train/images/a.png").write_text("no image")
    (tmp_path / "train/points/a.csv").write_text("x,y,class\n")
    with pytest.raises(UserError, match=r"a\.png cannot be opened as an image"):
        load_data(Source(data=tmp_path))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json is not a data set description"):
        load_data(Source(data=tmp_path))
