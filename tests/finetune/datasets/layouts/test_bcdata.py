"""BCData in a miniature of its published tree: what is read, what is refused."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from shared.errors import UserError
from tests.conftest import Command

EMPTY = np.empty((0, 2), np.int64)


def write_image(folder: Path, split: str, name: str, positive: object = EMPTY, negative: object = EMPTY) -> None:
    """Write an image and its two annotations; the published coordinates are whole numbers (x, y)."""
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), "white").save(folder / "images" / split / f"{name}.png")
    for kind, coordinates in (("positive", positive), ("negative", negative)):
        path = folder / "annotations" / split / kind / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["coordinates"] = coordinates


@pytest.fixture
def bcdata(tmp_path: Path) -> Path:
    write_image(tmp_path, "train", "0", [(10, 20), (63, 47)], [(1, 2)])
    write_image(tmp_path, "train", "1", negative=[(0, 0)])
    write_image(tmp_path, "validation", "0", positive=[(5, 5)])
    write_image(tmp_path, "test", "0", np.empty(0), h5py.Empty("i8"))
    return tmp_path


def test_cells_of_both_kinds(bcdata: Path) -> None:
    data = load_data(DataOptions(data=bcdata))
    assert (data.mpp, data.classes) == (0.25, ("positive", "negative"))
    assert data.radius_um / data.mpp == 10
    assert {name: len(tiles) for name, tiles in data.splits.items()} == {"train": 2, "val": 1, "test": 1}
    first, second = data.splits["train"]
    np.testing.assert_array_equal(first.points_N2, [(10.5, 20.5), (63.5, 47.5), (1.5, 2.5)])
    assert first.labels_N.tolist() == [0, 0, 1]
    assert (second.points_N2.tolist(), second.labels_N.tolist()) == ([[0.5, 0.5]], [1])
    assert data.splits["test"][0].points_N2.shape == (0, 2)


def test_the_order_of_the_classes_can_be_changed(bcdata: Path) -> None:
    data = load_data(DataOptions(data=bcdata, classes=("negative", "immunopositive=positive"), slide_mpp=0.24))
    assert (data.mpp, data.classes) == (0.24, ("negative", "immunopositive"))
    assert data.splits["train"][0].labels_N.tolist() == [1, 1, 0]


def test_summary(bcdata: Path, command: Command) -> None:
    done = command("finetune.datasets", "summary", bcdata)
    assert "64x48 px at 0.25 um/px, 2 classes; train/val/test: 2/1/1 images, 4 / 1 / 0 cells" in done.stdout
    done = command("finetune.datasets", "summary", bcdata / "images")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "none of the supported layouts: CoNSeP's" in done.stderr


@pytest.mark.parametrize(
    ("coordinates", "sentence"),
    [
        ([(10, 20), (64, 3)], r"positive/0\.h5, row 2: the point \(64, 3\) is outside its image of 64x48 px"),
        ([(10, 20), (-1, 3)], r"positive/0\.h5, row 2: the point \(-1, 3\) is outside"),
        ([(10, 20, 3)], r"positive/0\.h5 has coordinates of shape \(1, 3\), not one \(x, y\) a row"),
        ([10, 20], r"positive/0\.h5 has coordinates of shape \(2,\)"),
        ([b"ten", b"twenty"], r"positive/0\.h5 cannot be read as BCData's HDF5 coordinates"),
    ],
)
def test_bad_coordinates_are_named(bcdata: Path, coordinates: Sequence, sentence: str) -> None:
    write_image(bcdata, "train", "0", positive=coordinates)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=bcdata))


def test_damaged_missing_and_misplaced_files_are_named(bcdata: Path) -> None:
    path = bcdata / "annotations/train/negative/0.h5"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"negative/0\.h5 cannot be read as BCData's HDF5 coordinates"):
        load_data(DataOptions(data=bcdata))
    with h5py.File(path, "w") as file:
        file["points"] = EMPTY
    with pytest.raises(UserError, match=r"negative/0\.h5 has no data set 'coordinates'"):
        load_data(DataOptions(data=bcdata))
    with h5py.File(path, "w") as file:
        file.create_group("coordinates")
    with pytest.raises(UserError, match=r"negative/0\.h5 cannot be read as BCData's"):
        load_data(DataOptions(data=bcdata))
    path.unlink()
    with pytest.raises(UserError, match=r"images/train/0\.png has no annotation .*train/negative/0\.h5"):
        load_data(DataOptions(data=bcdata))
    (bcdata / "images/validation").rename(bcdata / "images/val")
    with pytest.raises(UserError, match=r"images/val is none of train, validation, test"):
        load_data(DataOptions(data=bcdata))


def test_a_format_that_the_folders_do_not_have_is_refused(bcdata: Path) -> None:
    (bcdata / "dataset.json").write_text('{"format": "ocelot"}')
    with pytest.raises(UserError, match=r"dataset\.json .*format 'ocelot'"):
        load_data(DataOptions(data=bcdata))
