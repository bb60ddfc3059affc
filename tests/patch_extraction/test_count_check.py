"""`python -m patch_extraction.count_check`: what a counter is worth on annotated fields."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patch_extraction.count_check import CountCheckConfig, annotated_squares, main, measure
from patch_extraction.counters.base import HaematoxylinCounter
from shared.errors import UserError
from shared.samples.sample_slides import write_tiles
from tests.patch_extraction.counters.test_haematoxylin import annotated, figures

MPP = 0.5


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(3, 0, 2), mpp=MPP, seed=3)
    return folder


@pytest.fixture
def check(monkeypatch):
    def call(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["count_check", *map(str, words)])
        main()

    return call


class Oracle:
    """Knows the cells of every square; finds every second one, and as many that are none."""

    name = "oracle"

    def __init__(self, squares) -> None:
        self._known = {image.tobytes(): points_N2 for image, points_N2 in squares}

    def find(self, image_HW3, mpp):
        points_N2 = self._known[image_HW3.tobytes()]
        return np.concatenate([points_N2[::2], np.full((len(points_N2[::2]), 2), -100.0)])


def test_figures_of_a_counter_whose_mistakes_are_known(tiles):
    squares = list(annotated_squares(tiles / "train", MPP, 64.0))
    assert len(squares) == 3 * 4
    quality = measure("train", squares, MPP, Oracle(squares), min_cells=10)
    true = [len(points_N2) for _, points_N2 in squares]
    halves = [(n + 1) // 2 for n in true]
    assert (quality.cells, quality.squares) == (sum(true), 12)
    assert quality.f1 == pytest.approx(2 * sum(halves) / (sum(true) + 2 * sum(halves)), abs=1e-3)
    assert quality.count_error == pytest.approx(
        np.mean([2 * h - n for h, n in zip(halves, true, strict=True)]), abs=0.01
    )
    right, accepted = np.array(true) >= 10, 2 * np.array(halves) >= 10
    assert quality.enough == pytest.approx(right.mean(), abs=1e-3)
    assert quality.recall == 1.0
    assert quality.precision == pytest.approx(right.sum() / accepted.sum(), abs=1e-3)


def test_squares_cover_the_image_and_every_cell_lies_in_one(tiles):
    for image, points_N2 in annotated_squares(tiles / "test", MPP, 50.0):
        assert image.shape == (100, 100, 3)
        assert ((points_N2 >= 0) & (points_N2 < 100)).all()
    counts = sum(len(points_N2) for _, points_N2 in annotated_squares(tiles / "test", MPP, 128.0))
    lines = [path.read_text().splitlines() for path in (tiles / "test" / "points").glob("*.csv")]
    assert counts == sum(len(rows) - 1 for rows in lines)


def test_real_fields_against_an_independent_reckoning(real_data):
    """Thirty fields; all of them are in tests/benchmarks/cell_counters.csv."""
    folder = real_data / "CD138/test"
    quality = measure("", list(annotated_squares(folder, 0.25, 128.0, 0.5)), 0.25, HaematoxylinCounter(), 30)
    reference = figures(annotated(folder, 0.25), 0.25)
    ours = (quality.f1, quality.count_error, quality.precision, quality.recall)
    assert ours == pytest.approx(tuple(reference.values()), abs=6e-3)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_command_writes_a_table_that_grows(tiles, check, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty_counter.py").write_text("def none(image, mpp):\n    return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "counters.csv"
    check(tiles / "train", f"{tiles / 'test'}={MPP}", "--counter", "haematoxylin", "--out", out)
    assert "haematoxylin 0.024" in capsys.readouterr().out
    check(tiles / "train", "--counter", "empty_counter:none", "--out", out)
    check(tiles / "train", "--counter", "haematoxylin", "--out", out)  # again: replaced, not doubled
    made = {(row["set"].rpartition("/")[2], row["counter"].partition(" ")[0]): row for row in rows(out)}
    assert set(made) == {("test", "haematoxylin"), ("train", "haematoxylin"), ("train", "empty_counter:none")}
    assert len(rows(out)) == 3
    assert float(made["train", "haematoxylin"]["f1"]) > 0.75
    assert (made["train", "empty_counter:none"]["recall"], made["train", "empty_counter:none"]["precision"]) == (
        "0.0",
        "nan",
    )


def test_wrong_folders(tiles, check, tmp_path):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    bad = Path(shutil.copytree(tiles / "test", tmp_path / "bad"))
    next((bad / "points").glob("*.csv")).write_text("x,y\n1,two\n")
    lost = Path(shutil.copytree(tiles / "test", tmp_path / "lost"))
    next((lost / "points").glob("*.csv")).unlink()
    broken = Path(shutil.copytree(tiles / "test", tmp_path / "broken"))
    next((broken / "images").glob("*.png")).write_bytes(b"no picture")
    for words, sentence in (
        (("nowhere=0.5",), "there is no folder nowhere; check the path"),
        ((tmp_path / "empty",), r"the um/px of .*empty are not known; .*empty=0\.5"),
        ((f"{tmp_path / 'empty'}=0",), r"the um/px of .*empty are given as 0; .*empty=0\.5"),
        ((f"{tmp_path / 'empty'}=0.5",), "images holds no pictures; give a folder with images/ and points/"),
        ((f"{bad}=0.5",), "is no table of cells; it needs columns x and y with numbers"),
        ((f"{lost}=0.5",), "cannot read the annotations .*: No such file or directory"),
        ((f"{broken}=0.5",), r"_0\.png cannot be opened as an image"),
        ((tiles / "test", "--out", tmp_path / "table.csv"), "is another kind of table; give another --out"),
        ((tiles / "test", "--counter", "a:b", "--detector", "c.pth"), "exclude each other; give one of them"),
        ((), "name at least one folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            check(*words)


def test_defaults_are_those_of_a_harvest():
    config = CountCheckConfig(())
    assert (config.patch_um, config.min_cells, config.counter) == (512 * 0.25, 30, "nuclei")


def test_dataset_json_beside_the_images_goes_first(tiles, check, tmp_path, capsys):
    folder = Path(shutil.copytree(tiles / "test", tmp_path / "test"))
    (folder / "dataset.json").write_text(json.dumps({"mpp": 1.0}))
    check(folder, "--patch-um", 128, "--counter", "haematoxylin")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "haematoxylin" in line]
    side = next((folder / "images").glob("*.png"))
    assert Image.open(side).size == (256, 256)
    assert line.split()[3:5] == ["1.0", "8"]  # um/px, and four squares of 128 px a picture
