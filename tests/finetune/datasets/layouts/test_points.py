"""The plain layout: what is read, what is refused, and in which words."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from finetune.datasets.data_summary import summary_text
from finetune.datasets.dataset import Tile
from finetune.datasets.description import Description
from finetune.datasets.splits import arrange, hold_out
from shared.errors import UserError

NOTHING = (np.zeros((0, 2), np.float32), np.zeros(0, np.int64))


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
    data = load_data(DataOptions(data=tmp_path))
    assert data.classes == ("negative", "positive")
    tile = next(t for t in data.splits["train"] + data.splits.get("val", []) if "TCGA" in t.image.name)
    np.testing.assert_array_equal(tile.points_N2, [[1.5, 2.5], [3, 4]])
    np.testing.assert_array_equal(tile.labels_N, [0, 1])
    shifted = load_data(DataOptions(data=tmp_path, origin="pixel_index"))
    np.testing.assert_array_equal(shifted.splits["train"][0].points_N2, [[2, 3], [3.5, 4.5]])


def test_endings_in_capitals_and_byte_order_marks(tmp_path: Path) -> None:
    """As Windows has them."""
    write(tmp_path / "train", ["a", "b", "c"])
    points = tmp_path / "train/points"
    (points / "a.csv").rename(points / "a.CSV")
    (points / "b.csv").unlink()
    (points / "b.JSON").write_text('{"1": [[1.5, 2.5]], "2": [[3, 4]]}', encoding="utf-8-sig")
    describe(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    data = load_data(DataOptions(data=tmp_path))
    assert [tile.labels_N.tolist() for tiles in data.splits.values() for tile in tiles] == [[0, 1]] * 3


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"])
    describe(tmp_path)
    data = load_data(DataOptions(data=tmp_path, slide_mpp=0.25, classes=("tumour=2", "other=1")))
    assert (data.mpp, data.classes) == (0.25, ("tumour", "other"))
    np.testing.assert_array_equal(data.splits["train"][0].labels_N, [1, 0])


def test_classes_come_from_the_files_where_nothing_names_them(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"], "x,y,class\n1,1,10\n2,2,9\n3,3,lymph\n4,4,²\n")
    assert load_data(DataOptions(data=tmp_path, slide_mpp=0.5)).classes == ("class 9", "class 10", "lymph", "²")


@pytest.mark.parametrize("one", ["x,y,class\n1,1,1.0\n2,2,2.\n", "x,y,class\n1,1, 1\n2,2,2.00\n"])
def test_a_whole_number_is_one_class_however_it_is_written(tmp_path: Path, one: str) -> None:
    """1.0 is what pandas writes of whole numbers in a column with a gap."""
    write(tmp_path / "train", ["a"], one)
    write(tmp_path / "val", ["b"], "x,y,class\n1,1,1\n2,2,2\n")
    for classes in ((), ("class 1=1", "class 2=2.0")):
        data = load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=classes))
        assert data.classes == ("class 1", "class 2")
        assert [tile.labels_N.tolist() for tiles in data.splits.values() for tile in tiles] == [[0, 1]] * 2
    with pytest.raises(UserError, match="--classes has '1' twice"):
        load_data(DataOptions(data=tmp_path, classes=("a=1", "b=1.0")))


def test_a_number_and_a_word_for_it_are_not_taken_for_one_class(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"], "x,y,class\n1,1,1\n2,2,class 1\n3,3,²\n")
    with pytest.raises(UserError, match=r"class '1', others 'class 1'.*--classes"):
        load_data(DataOptions(data=tmp_path, slide_mpp=0.5))
    data = load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=("a=1", "b=class 1", "²")))
    assert data.splits["train"][0].labels_N.tolist() == [0, 1, 2]


def test_classes_that_only_some_splits_have_are_named(tmp_path: Path) -> None:
    """As a slip of the pen makes them; whoever has named the classes knows them."""
    write(tmp_path / "train", ["a"], "x,y,class\n1,1,tumour\n2,2,lymph\n3,3,rare\n")
    write(tmp_path / "val", ["b"], "x,y,class\n1,1,tumour\n2,2,tumor\n3,3,new\n")
    write(tmp_path / "test", ["c"], "x,y,class\n1,1,lymph\n3,3,new\n")
    data = load_data(DataOptions(data=tmp_path, slide_mpp=0.5))
    (note,) = data.notes()
    assert "not in train: 'new' (in val and test), 'rare' (in train), 'tumor' (in val); correct" in note
    assert str(data).split("\n")[1:] == summary_text(data).split("\n")[-1:] == [note]
    assert load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=data.classes)).notes() == []


def test_what_training_leaves_out_for_want_of_tiles_is_said(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a"])
    describe(tmp_path)
    (note,) = load_data(DataOptions(data=tmp_path)).notes()
    assert "no val tiles and no test tiles: " in note and "no test score" in note
    write(tmp_path / "val", ["b"])
    (note,) = load_data(DataOptions(data=tmp_path)).notes()
    assert "no test tiles: no test score" in note
    (tmp_path / "train").rename(tmp_path / "test")  # to be scored alone
    assert load_data(DataOptions(data=tmp_path)).notes() == []


def test_a_flat_folder_is_dealt_out_by_slide(tmp_path: Path) -> None:
    names = [f"s{slide}_{tile}" for slide in range(10) for tile in range(3)]
    write(tmp_path, names)
    describe(tmp_path, slides={f"images/{name}.png": name.split("_")[0] for name in names})
    splits = load_data(DataOptions(data=tmp_path)).splits
    assert {name: len(tiles) for name, tiles in splits.items()} == {"train": 18, "val": 6, "test": 6}
    slides = [{tile.slide for tile in tiles} for tiles in splits.values()]
    assert not (slides[0] & slides[1] or slides[0] & slides[2] or slides[1] & slides[2])


def test_an_image_without_cells_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"], "x,y,class\n")
    describe(tmp_path)
    assert len(load_data(DataOptions(data=tmp_path)).splits["train"][0].labels_N) == 0


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("x,y,class\n1,2,1\nfoo,2,1\n", r"a\.csv, line 3: x='foo', y='2' are not two numbers"),
        ("x,y,class\n1,2,1\n1,2\n", r"a\.csv, line 3: .*no class"),
        ("x,y,class\n1,2,7\n", r"a\.csv, line 2: class '7' is none of"),
        ("x,y,class\n1,200,1\n", r"a\.csv, line 2: the point \(1, 200\) is outside its image of 32x32 px"),
        ("x,y,class\nnan,2,1\n", r"a\.csv, line 2: the point \(nan, 2\) is outside"),
        ("1,2,1\n", r"a\.csv has no header with the columns x,y,class \(its first line: 1, 2, 1\); name them so"),
        ("X,Y,label\n1,2,1\n", r"\(its first line: X, Y, label\); name them so in the first line$"),
        ("x;y;class\n1;2;1\n", r"\(its first line: x;y;class\); .* and separate them by commas$"),
        ("", r"a\.csv has no header .*\(its first line: empty\)"),
        ("\xff\xfe\x00", r"a\.csv is not a CSV text file"),
    ],
)
def test_a_bad_annotation_is_named_with_its_line(tmp_path: Path, rows: str, sentence: str) -> None:
    write(tmp_path / "train", ["a", "b"])
    (tmp_path / "train/points/a.csv").write_bytes(rows.encode("latin-1"))
    describe(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=tmp_path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere; .*--data.*images,points"):
        load_data(DataOptions(data=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="none of the supported layouts"):
        load_data(DataOptions(data=tmp_path))
    write(tmp_path / "train", ["a", "b"])
    with pytest.raises(UserError, match=r"does not state its resolution.*--slide-mpp"):
        load_data(DataOptions(data=tmp_path))
    describe(tmp_path)
    (tmp_path / "train/points/a.csv").unlink()
    with pytest.raises(UserError, match=r"images/a\.png has no annotation .*points/a\.csv"):
        load_data(DataOptions(data=tmp_path))
    (tmp_path / "train/images/a.png").write_text("no image")
    (tmp_path / "train/points/a.csv").write_text("x,y,class\n")
    with pytest.raises(UserError, match=r"a\.png cannot be opened as an image"):
        load_data(DataOptions(data=tmp_path))
    for content in ("{", "[" * 100_000):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(UserError, match=r"dataset\.json is not"):
            load_data(DataOptions(data=tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ["TCGA-A1-A0SB-01Z-00-DX1.{n}", "TCGA-B6-A0IQ-01Z-00-DX1.{n}"],
        ["slide one_{n}_512", "slide two_{n}_512"],
        ["case-1 [x={n},y=512,w=256,h=256]", "case-2 [x={n},y=512,w=256,h=256]"],
    ],
)
def test_names_that_show_one_slide_in_several_splits(tmp_path: Path, names: list[str]) -> None:
    stems = [name.format(n=number) for name in names for number in range(0, 5120, 512)]
    write(tmp_path, stems)
    (note,) = load_data(DataOptions(data=tmp_path, slide_mpp=0.5)).notes()
    slide = stems[0].split(".")[0].split(" [")[0].removesuffix("_0_512")
    assert f'.png": "{slide}"' in note and "dataset.json" in note and "2 slides" in note
    slides = {f"images/{stem}.png": name for name in names for stem in stems if stem[:8] == name[:8]}
    (tmp_path / "dataset.json").write_text(json.dumps({"mpp": 0.5, "slides": slides}))
    assert not any('"slides"' in note for note in load_data(DataOptions(data=tmp_path)).notes())


def test_the_name_of_the_scores_of_all_classes_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"], "x,y,class\n1,1,any cell\n")
    for classes in ((), ("any cell=1",)):
        with pytest.raises(UserError, match="'any cell'"):
            load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=classes))
    load_data(DataOptions(data=tmp_path, slide_mpp=0.5, classes=("cell=any cell",)))


def test_tiles_of_one_patient_stay_together(tmp_path: Path) -> None:
    """Of five patients, with two slides each and two tiles a slide."""
    stems = [f"{slide}{tile}" for slide in "abcdefghij" for tile in "12"]
    write(tmp_path, stems)
    slides = {f"images/{stem}.png": stem[0] for stem in stems}
    patients = {slide: f"p{number // 2}" for number, slide in enumerate("abcdefghij")}
    describe(tmp_path, slides=slides, patients=patients)
    data = load_data(DataOptions(data=tmp_path))
    where = {name: {tile.patient for tile in tiles} for name, tiles in data.splits.items()}
    assert {name: len(each) for name, each in where.items()} == {"train": 3, "val": 1, "test": 1}
    assert len(set.union(*where.values())) == 5
    assert [line.split()[3] for line in summary_text(data).splitlines()[2:7]] == ["patients", "3", "1", "1", "5"]
    fold = hold_out(data, 1, 4)
    held_out = [{tile.patient for tile in tiles} for tiles in fold.splits.values()]
    assert sum(map(len, held_out)) == 4  # the patient of the test tiles is not used
    listed = {"train": list(slides)[:2], "test": list(slides)[2:]}
    describe(tmp_path, slides=slides, patients=patients, splits=listed)
    with pytest.raises(UserError, match=r"patient 'p0' in both train and test"):
        load_data(DataOptions(data=tmp_path))
    describe(tmp_path, slides=slides, patients={"zebra": "p0"})
    with pytest.raises(UserError, match=r'"patients" in .*dataset\.json names zebra'):
        load_data(DataOptions(data=tmp_path))


def test_names_that_show_no_slide(tmp_path: Path) -> None:
    write(tmp_path, [f"image_{number}" for number in range(10)])
    assert not load_data(DataOptions(data=tmp_path, slide_mpp=0.5)).notes()


def test_splits_can_be_listed(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b", "c"])
    listed = {"train": ["images/c.png"], "test": ["images/a.png", "images/b.png"]}
    describe(tmp_path, format="points", splits=listed)
    splits = load_data(DataOptions(data=tmp_path)).splits
    found = {name: [f"images/{tile.image.name}" for tile in tiles] for name, tiles in splits.items()}
    assert found == listed


def test_line_numbers_count_blank_lines_and_headers_may_have_spaces(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"], "x, y, class\n1,1,1\n\n\n2,2,9\n")
    describe(tmp_path)
    with pytest.raises(UserError, match=r"a\.csv, line 5: class '9'"):
        load_data(DataOptions(data=tmp_path))


def test_images_with_one_name_in_two_splits_are_two_slides(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path / split, ["1", "2"])
    describe(tmp_path)
    assert {name: len(tiles) for name, tiles in load_data(DataOptions(data=tmp_path)).splits.items()} == {
        "train": 2,
        "val": 2,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"slides": {"train/images/a.png": "s", "test/images/t.png": "s"}},
            "tiles of slide 's' in both train and",
        ),
        ({"slides": {"images/a.png": "s"}}, '"slides" in .* names images/a.png, which is not an image there'),
        ({"splits": {"train": ["train/images/a.png"]}}, '"splits" in .* leaves out test/images/t.png'),
        ({"splits": {"validation": []}}, "split 'validation' is none of train, val, test"),
        ({"mmp": 0.5}, "unknown field 'mmp'; known are format, mpp"),
        ({"format": "coco"}, "format 'coco' is none of points, consep"),
        ({"mpp": -1}, "-1 um/px is not a resolution"),
        ({"mpp": float("nan")}, "nan um/px is not a resolution"),
        ({"origin": 0}, "origin '0' of .* is neither corner nor pixel_index"),
        ({"classes": [{"name": "a", "value": 1}, {"name": "a", "value": 2}]}, "'a' twice among its classes"),
        ({"classes": [{"name": "a", "value": 1}, {"name": "b", "value": 1}]}, "'1' twice among its classes"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, fields: dict, sentence: str) -> None:
    write(tmp_path / "train", ["a", "b"])
    write(tmp_path / "test", ["t"])
    describe(tmp_path, **fields)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=tmp_path))


def test_classes_given_twice_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"])
    describe(tmp_path)
    with pytest.raises(UserError, match="--classes has 'a' twice"):
        load_data(DataOptions(data=tmp_path, classes=("a=1", "a=2")))


def test_folders_and_files_that_would_be_left_out_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a", "b"])
    describe(tmp_path)
    write(tmp_path / "validation", ["c"])
    with pytest.raises(UserError, match=r"validation/images is not read, because .* is divided into train"):
        load_data(DataOptions(data=tmp_path))
    (tmp_path / "validation").rename(tmp_path / "val")
    Image.new("RGB", (32, 32)).save(tmp_path / "train/images/a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png share one name"):
        load_data(DataOptions(data=tmp_path))


def test_images_that_cannot_be_used_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train", ["a", "b"])
    describe(tmp_path)
    path = tmp_path / "train/images/a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.png cannot be opened as an image"):
        load_data(DataOptions(data=tmp_path))
    Image.fromarray(np.full((32, 32), 3000, np.uint16)).save(path)
    with pytest.raises(UserError, match=r"a\.png has pixels of mode I;16; write it as an 8-bit RGB image"):
        load_data(DataOptions(data=tmp_path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 // 2 - 1)  # Pillow opens twice as many
    with pytest.raises(UserError, match=r"a\.png is too large"):
        load_data(DataOptions(data=tmp_path))


def test_a_val_folder_goes_before_the_validation_tiles_that_a_data_set_is_known_for(tmp_path: Path) -> None:
    tiles = {name: [Tile(tmp_path / f"{name}.png", name, (1, 1), *NOTHING)] for name in ("train", "val")}
    known = Description(val=frozenset({"train"}))
    assert arrange(tmp_path, tiles, known) == tiles
    assert arrange(tmp_path, {"train": tiles["train"]}, known) == {"val": tiles["train"]}
