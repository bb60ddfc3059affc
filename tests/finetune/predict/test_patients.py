"""Patients of slides: in the table of slides, summed up in one of their own, and in imported data."""

import csv
import json
from pathlib import Path

import pytest

from finetune.datasets import DataOptions, load_data
from finetune.datasets.import_qupath import Import, import_annotations
from finetune.datasets.patients import patient_of, read_patients
from shared.errors import UserError
from tests.finetune.predict.conftest import Predict
from tests.finetune.predict.planted import plant


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Three images, two of them of one patient; one is not listed."""
    (tmp_path / "slides" / "Ki-67").mkdir(parents=True)
    for seed, name in enumerate(("Ki-67/a.png", "Ki-67/b.png", "c.png", "d.png")):
        plant(300 + 40 * seed, 200, seed=seed).image.save(tmp_path / "slides" / name)
    (tmp_path / "list.csv").write_text("slide,biomarker,patient\nKi-67/a.png,x,P1\nb,x,P1\nc.png,x,P2\nd.png,x,\n")
    return tmp_path / "slides"


def test_counts_and_indices_per_patient(predict_here: Predict, slides: Path, tmp_path: Path) -> None:
    options = {"slide_mpp": 0.25, "patients": tmp_path / "list.csv", "ratio": ("index = red / (red + blue)",)}
    assert predict_here(slides, **options) == 0
    slide_rows = {row["slide"]: row for row in rows(tmp_path / "cells" / "summary.csv")}
    patients = {name: row["patient"] for name, row in slide_rows.items()}
    assert patients == {"Ki-67/a": "P1", "Ki-67/b": "P1", "c": "P2", "d": ""}
    first, second = rows(tmp_path / "cells" / "patients.csv")
    assert (first["patient"], first["slides"], second["patient"], second["slides"]) == ("P1", "2", "P2", "1")
    both = [slide_rows["Ki-67/a"], slide_rows["Ki-67/b"]]
    for column in ("cells", "red cells", "blue cells"):
        assert int(first[column]) == sum(int(row[column]) for row in both) > 0
    mm2 = (300 + 340) * 200 * 0.25**2 * 1e-6
    assert float(first["mm2"]) == pytest.approx(mm2, abs=1e-6)
    assert float(first["red per mm2"]) == pytest.approx(int(first["red cells"]) / mm2, rel=1e-3)
    assert float(first["index"]) == pytest.approx(int(first["red cells"]) / int(first["cells"]))
    assert float(second["index"]) == pytest.approx(float(slide_rows["c"]["index"]))


def test_patients_may_be_given_later(predict_here: Predict, slides: Path, tmp_path: Path) -> None:
    assert predict_here(slides / "c.png", slide_mpp=0.25) == 0
    assert not (tmp_path / "cells" / "patients.csv").exists()
    assert predict_here(slides / "c.png", slide_mpp=0.25, patients=tmp_path / "list.csv") == 0
    assert [row["patient"] for row in rows(tmp_path / "cells" / "patients.csv")] == ["P2"]


def test_imported_tiles_of_a_patient_stay_together(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "annotated").mkdir()
    for name in "abcd":
        feature = {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [100, 100]},
            "properties": {"objectType": "annotation", "classification": {"name": "red"}},
        }
        content = {"type": "FeatureCollection", "features": [feature]}
        (tmp_path / "annotated" / f"{name}.geojson").write_text(json.dumps(content))
    config = Import(
        annotations=tmp_path / "annotated",
        slides=slides,
        out=tmp_path / "data",
        patients=tmp_path / "list.csv",
        slide_mpp=0.25,
    )
    assert import_annotations(config) == 0
    data = load_data(DataOptions(data=tmp_path / "data"))
    tiles = [tile for each in data.splits.values() for tile in each]
    assert {tile.slide: tile.patient for tile in tiles} == {"Ki-67_a": "P1", "Ki-67_b": "P1", "c": "P2", "d": ""}


def test_a_slide_is_found_by_the_end_of_its_path(tmp_path: Path) -> None:
    patients = {"a": "1", "x/a.svs": "2", "b.tif": "3"}
    assert patient_of(patients, Path("/data/x/a.svs")) == "2"
    assert patient_of(patients, Path("/data/y/a.svs")) == "1"
    assert patient_of(patients, Path("b.tif")) == "3"
    assert patient_of(patients, Path("ba.svs")) == ""
    (tmp_path / "list.csv").write_text("slide,patient\na,1\na,2\n")
    with pytest.raises(UserError, match="line 3: a has two patients, 1 and 2"):
        read_patients(tmp_path / "list.csv")
