"""The shipped detector goes by its name, unless a file has it."""

from pathlib import Path

from finetune import Detector
from finetune.predict.config import PredictConfig
from finetune.predict.prediction_plan import make_plan
from shared.model.detector_file import load_detector
from shared.weights.shipped import NUCLEI_FILE, shipped_or_given


def test_its_name_finds_it_everywhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Detector.load("nuclei").path == NUCLEI_FILE
    assert load_detector(Path("nuclei"))[0].config.arch == "regnetx_002"
    plans = [
        make_plan(PredictConfig(detector=Path(name), sources=(tmp_path,)), "cpu")
        for name in ("nuclei", str(NUCLEI_FILE))
    ]
    assert plans[0].detector_digest == plans[1].detector_digest
    assert NUCLEI_FILE.stat().st_size <= 12e6


def test_a_file_of_that_name_wins(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nuclei").write_bytes(b"mine")
    assert shipped_or_given("nuclei") == Path("nuclei")
    assert shipped_or_given("other.pth") == Path("other.pth")
