"""OCELOT in a miniature of its published tree: slides, resolution, splits, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from shared.errors import UserError

MPP = 0.1944605476455763


def write_patch(folder: Path, split: str, sample: str, rows: str = "", slide: str = "", **cell: object) -> None:
    """Write a cell patch, its tissue patch, annotations and metadata, as in metadata.json 1.0.1."""
    for kind, suffix in (("cell", "csv"), ("tissue", "png")):
        for path in (folder / "images" / split / kind, folder / "annotations" / split / kind):
            path.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1024, 1024), "white").save(folder / f"images/{split}/{kind}/{sample}.jpg")
        (folder / f"annotations/{split}/{kind}/{sample}.{suffix}").write_text(rows if kind == "cell" else "")
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text()) if path.exists() else {"general_info": {}, "sample_pairs": {}}
    box = {"x_start": 0, "y_start": 0, "x_end": 788, "y_end": 788}
    metadata["sample_pairs"][sample] = {
        "slide_name": slide or f"TCGA-{sample}",
        "cell": {**box, "resized_mpp_x": MPP, "resized_mpp_y": MPP, **cell},
        "tissue": {**box, "x_end": 3152, "y_end": 3152, "resized_mpp_x": 4 * MPP, "resized_mpp_y": 4 * MPP},
        "patch_x_offset": 0.125,
        "patch_y_offset": 0.125,
        "mpp_x": 0.2527,
        "mpp_y": 0.2527,
        "organ": "kidney",
        "subset": split,
    }
    path.write_text(json.dumps(metadata))


@pytest.fixture
def ocelot(tmp_path: Path) -> Path:
    write_patch(tmp_path, "train", "001", "0,0,1\n1023,1023,2\n", "A")
    write_patch(tmp_path, "train", "002", "", "A")
    write_patch(tmp_path, "val", "003", "10,20,2", "B", resized_mpp_x=0.1943, resized_mpp_y=0.1943)
    write_patch(tmp_path, "test", "004", "1,1,1\r\n", "C")
    return tmp_path


def test_cells_resolution_slides_and_official_splits(ocelot: Path) -> None:
    data = load_data(DataOptions(data=ocelot))
    assert (data.classes, data.mpp) == (("background cell", "tumour cell"), pytest.approx(MPP))
    assert data.radius_um / data.mpp == pytest.approx(15)
    splits = {name: [(t.image.stem, t.slide) for t in tiles] for name, tiles in data.splits.items()}
    assert splits == {"train": [("001", "A"), ("002", "A")], "val": [("003", "B")], "test": [("004", "C")]}
    first, second = data.splits["train"]
    np.testing.assert_array_equal(first.points_N2, [(0.5, 0.5), (1023.5, 1023.5)])
    assert (first.labels_N.tolist(), second.points_N2.shape) == ([0, 1], (0, 2))
    assert all("cell" in tile.image.parts and tile.size == (1024, 1024) for tile in data.splits["train"])


def test_train_alone_is_dealt_out_by_slide(tmp_path: Path) -> None:
    for number in range(20):
        write_patch(tmp_path, "train", f"{number:03d}", "1,1,1\n", slide=f"slide {number // 2}")
    (tmp_path / "images/val/cell").mkdir(parents=True)  # images without annotations, as in the first release
    shutil.copy(tmp_path / "images/train/cell/000.jpg", tmp_path / "images/val/cell/400.jpg")
    splits = load_data(DataOptions(data=tmp_path)).splits
    assert {name: len(tiles) for name, tiles in splits.items()} == {"train": 12, "val": 4, "test": 4}
    slides = [{tile.slide for tile in tiles} for tiles in splits.values()]
    assert not (slides[0] & slides[1] or slides[0] & slides[2] or slides[1] & slides[2])


def test_a_slide_in_two_splits_is_refused(ocelot: Path) -> None:
    write_patch(ocelot, "test", "005", "", "A")
    with pytest.raises(UserError, match=r"tiles of slide 'A' in both train and test \(one is .*005\.jpg"):
        load_data(DataOptions(data=ocelot))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("1,1,1\n5,5,3\n", r"001\.csv, line 2: class '3' is none of 1 \(background cell\), 2 \(tumour cell\)"),
        ("x,y,class\n", r"001\.csv, line 1: x='x', y='y' are not two numbers"),
        ("1,1,1\n\n1,1\n", r"001\.csv, line 3: 2 fields instead of x,y,class"),
        ("1024,1,1\n", r"001\.csv, line 1: the point \(1024, 1\) is outside its image of 1024x1024 px"),
        ("1;1;1\n", r"001\.csv, line 1: 1 fields instead of x,y,class"),
        ("\xff\xfe", r"001\.csv is not a CSV text file"),
    ],
)
def test_a_bad_row_is_named(ocelot: Path, rows: str, sentence: str) -> None:
    (ocelot / "annotations/train/cell/001.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=ocelot))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (
            {"resized_mpp_x": 0.25, "resized_mpp_y": 0.25},
            r"sample '001': 0\.25 um/px, while the others have 0\.194",
        ),
        ({"resized_mpp_x": 0.25}, r"sample '001': 0\.25 x 0\.19446\d* um/px is not a resolution of square pixels"),
        ({"resized_mpp_x": 0}, r"sample '001': 0 x .* is not a resolution"),
        ({"resized_mpp_x": None}, r"metadata\.json, sample '001'"),
    ],
)
def test_resolutions_that_make_no_sense_are_refused(ocelot: Path, cell: dict, sentence: str) -> None:
    write_patch(ocelot, "train", "001", **cell)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=ocelot))


def test_incomplete_metadata_and_files_are_named(ocelot: Path) -> None:
    path = ocelot / "metadata.json"
    content = json.loads(path.read_text())
    del content["sample_pairs"]["003"]["slide_name"]
    for text, sentence in [
        (json.dumps(content), r"metadata\.json has no 'slide_name' for sample '003'"),
        (json.dumps({"sample_pairs": {}}), r"metadata\.json has no '001' for sample '001'"),
        (json.dumps([{"mpp_x": 0.25}]), r"metadata\.json is not the metadata of OCELOT .*sample_pairs"),
        ("{", r"metadata\.json is not JSON"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            load_data(DataOptions(data=ocelot))
    path.unlink()
    with pytest.raises(UserError, match=r"there is no .*metadata\.json"):
        load_data(DataOptions(data=ocelot))
    (ocelot / "annotations/test/cell/004.csv").unlink()
    with pytest.raises(UserError, match=r"004\.jpg has no annotation .*test/cell/004\.csv"):
        load_data(DataOptions(data=ocelot))
    shutil.rmtree(ocelot / "images/test")
    with pytest.raises(
        UserError, match=r"annotations/test/cell belongs to no images; .*images/test/cell is missing"
    ):
        load_data(DataOptions(data=ocelot))
