"""CoNSeP's cells against the paper's Table 2; the published 40x form against the same tiles at 20x."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from finetune.datasets import DataOptions, load_data
from shared.errors import UserError
from tests.conftest import Command

CLASSES = ("inflammatory", "epithelial", "stromal")


def write_tile(folder: Path, name: str, image: np.ndarray, types: list[int], centroids: list) -> None:
    """Write an image and its labels with the keys, shapes and types of the published files."""
    kind = "Train" if name.startswith("train") else "Test"
    for inner in ("Images", "Labels", "Overlay"):
        (folder / kind / inner).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / kind / "Images" / f"{name}.png")
    labels = {
        "inst_map": np.zeros((4, 4)),
        "type_map": np.zeros((4, 4)),
        "inst_type": np.array(types, float).reshape(-1, 1),
        "inst_centroid": np.array(centroids, float).reshape(-1, 2),
    }
    scipy.io.savemat(folder / kind / "Labels" / f"{name}.mat", labels, do_compression=True)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Three tiles; `train_5` is one of the validation tiles. A dark 40x pixel block marks a cell in test_1."""
    image = np.full((1000, 1000, 3), 250, np.uint8)
    image[200:202, 600:602] = [0, 10, 20]
    write_tile(tmp_path, "train_1", image, [1, 2, 3, 4, 5, 6, 7], [(100 * i, 10 * i) for i in range(7)])
    write_tile(tmp_path, "train_5", image, [], [])
    write_tile(tmp_path, "test_1", image, [2], [(600.5, 200.5)])
    return tmp_path


def test_table_2(real_data: Path, command: Command) -> None:
    data = load_data(DataOptions(data=real_data / "CoNSeP"))
    assert (data.mpp, data.classes, data.radius_um / data.mpp) == (0.5, CLASSES, 6)
    done = command("finetune.datasets", "summary", real_data / "CoNSeP")
    # The paper prints 8,777 test cells: one fell together with another when the points were rasterised.
    assert "22/5/14 images, 13,040 / 2,515 / 8,776 cells" in done.stdout, done.stderr
    rows = {words[0]: words[1:] for words in map(str.split, done.stdout.splitlines()) if words}
    assert rows["train"] == ["22", "22", "13,040", "3,255", "5,160", "4,625"]
    assert rows["val"] == ["5", "5", "2,515", "686", "377", "1,452"]
    assert rows["test"] == ["14", "14", "8,776", "1,638", "3,213", "3,925"]


def test_points_are_centres_of_pixels(real_data: Path) -> None:
    tile = load_data(DataOptions(data=real_data / "CoNSeP")).splits["test"][0]
    np.testing.assert_array_equal(tile.points_N2 % 1, 0.5)


def test_types_are_grouped_and_points_halved(published: Path) -> None:
    data = load_data(DataOptions(data=published))
    assert (data.mpp, data.classes) == (0.5, CLASSES)
    assert {name: [tile.image.stem for tile in tiles] for name, tiles in data.splits.items()} == {
        "train": ["train_1"],
        "val": ["train_5"],
        "test": ["test_1"],
    }
    tile = data.splits["train"][0]
    assert [CLASSES[label] for label in tile.labels_N] == [
        "stromal",
        "inflammatory",
        "epithelial",
        "epithelial",
        "stromal",
        "stromal",
        "stromal",
    ]
    np.testing.assert_allclose(tile.points_N2[:3], [(0.25, 0.25), (50.25, 5.25), (100.25, 10.25)])
    assert data.splits["val"][0].points_N2.shape == (0, 2)


def test_images_are_read_at_20x_with_their_points_on_them(published: Path) -> None:
    tile = load_data(DataOptions(data=published)).splits["test"][0]
    image = tile.read()
    assert (image.shape, image.dtype, tile.size) == ((500, 500, 3), np.uint8, (500, 500))
    x, y = tile.points_N2[0]
    assert (x, y) == (300.5, 100.5)  # the centre of the one dark pixel at 20x
    assert image[int(y), int(x)].tolist() == [0, 10, 20]
    assert (image < 200).any(-1).sum() == 1


def test_reduction_averages_blocks(published: Path) -> None:
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 200  # finer than a pixel at 20x: without averaging it would alias to black or white
    write_tile(published, "test_1", stripes, [], [])
    np.testing.assert_array_equal(load_data(DataOptions(data=published)).splits["test"][0].read(), 100)


def test_other_classes_order_and_splits_can_be_asked_for(published: Path) -> None:
    data = load_data(DataOptions(data=published, classes=("stroma=3", "epithelium=2", "lymphocyte=1")))
    assert data.classes == ("stroma", "epithelium", "lymphocyte")
    assert data.splits["train"][0].labels_N.tolist() == [0, 2, 1, 1, 0, 0, 0]
    listed = '{"splits": {"train": ["Test/Images/test_1.png"], "test": ["Train/Images/train_1.png",'
    (published / "dataset.json").write_text(listed + ' "Train/Images/train_5.png"]}}')
    data = load_data(DataOptions(data=published))
    assert {name: len(tiles) for name, tiles in data.splits.items()} == {"train": 1, "test": 2}
    assert data.mpp == 0.5


@pytest.mark.parametrize(
    ("types", "centroids", "sentence"),
    [
        ([2, 8], [(1, 1), (2, 2)], r"train_1\.mat, row 2 of inst_type: 8 is none of CoNSeP's types 1 to 7"),
        ([2], [(1, 1), (2, 2)], r"train_1\.mat has 1 rows in inst_type but 2 in inst_centroid"),
        (
            [2],
            [(1000, 1)],
            r"train_1\.mat, row 1 of inst_centroid: the point \(1000, 1\) is outside .*1000x1000",
        ),
        ([2], [(np.nan, 1)], r"row 1 of inst_centroid: the point \(nan, 1\) is outside"),
    ],
)
def test_a_bad_row_is_named(published: Path, types: list, centroids: list, sentence: str) -> None:
    write_tile(published, "train_1", np.zeros((1000, 1000, 3), np.uint8), types, centroids)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=published))


def test_damaged_and_missing_files_are_named(published: Path) -> None:
    label = published / "Train/Labels/train_1.mat"
    whole = label.read_bytes()
    for content, sentence in [
        (whole[: len(whole) // 2], r"train_1\.mat cannot be read as CoNSeP's MATLAB labels"),
        (b"", r"train_1\.mat cannot be read as CoNSeP's MATLAB labels"),
        (b"x,y,class\n1,2,3\n" * 50, r"train_1\.mat cannot be read as CoNSeP's MATLAB labels"),
    ]:
        label.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            load_data(DataOptions(data=published))
    scipy.io.savemat(label, {"inst_centroid": np.zeros((1, 2))})
    with pytest.raises(UserError, match=r"train_1\.mat has no inst_type"):
        load_data(DataOptions(data=published))
    label.unlink()
    with pytest.raises(UserError, match=r"train_1\.png has no annotation .*Labels/train_1\.mat"):
        load_data(DataOptions(data=published))
    write_tile(published, "train_1", np.zeros((500, 500, 3), np.uint8), [], [])
    with pytest.raises(UserError, match=r"train_1\.png has 500x500 px, not the 1000x1000"):
        load_data(DataOptions(data=published))


def test_the_resolution_of_the_files_is_not_taken_for_that_of_the_tiles(published: Path) -> None:
    with pytest.raises(UserError, match=r"is CoNSeP at 40x, whose tiles are reduced to 0\.5 um/px .*--slide-mpp"):
        load_data(DataOptions(data=published, slide_mpp=0.25))
    assert load_data(DataOptions(data=published, slide_mpp=0.5)).mpp == 0.5
