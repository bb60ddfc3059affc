"""Files of users survive predictions, and predictions survive their slides."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from tests.conftest import ENVIRONMENT
from tests.finetune.predict import planted
from tests.finetune.predict.conftest import Predict
from tests.finetune.predict.planted import plant


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "slide.png"
    plant(300, 200).image.save(path)
    return path


@pytest.mark.parametrize("name", ["slide.geojson", "slide.csv", "slide.summary.json", "slide.density.png"])
def test_files_of_users_are_not_replaced(predict_here: Predict, png: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / name).write_text("drawn by hand")
    with pytest.raises(UserError, match=name):
        predict_here(png, slide_mpp=0.25, report=True)
    assert (tmp_path / "cells" / name).read_text() == "drawn by hand"


def test_corrections_in_qupath_are_not_replaced(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    geojson = tmp_path / "cells/slide.geojson"
    assert predict_here(png, slide_mpp=0.25) == 0
    assert predict_here(png, slide_mpp=0.25, ratio=("R = red / blue",)) == 0  # untouched files are replaced
    geojson.write_text(geojson.read_text().replace("red", "blue"))
    corrected = geojson.read_text()
    assert predict_here(png, slide_mpp=0.25, ratio=("R = red / blue",)) == 0  # the slide is done
    with pytest.raises(UserError, match=r"slide\.geojson"):
        predict_here(png, slide_mpp=0.25, ratio=("R = blue / red",))
    assert predict_here(png, slide_mpp=0.25, compress="zip", csv=False) == 0  # writes beside it, and leaves it
    assert geojson.read_text() == corrected
    assert not (tmp_path / "cells/slide.csv").exists()
    (tmp_path / "cells/slide.csv").write_text("another program's")
    assert predict_here(png, slide_mpp=0.25, compress="zip", csv=False, ratio=("R = red / blue",)) == 0
    assert (tmp_path / "cells/slide.csv").read_text() == "another program's"


def test_corrections_made_during_the_prediction_are_not_replaced(
    predict_here: Predict, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    geojson = tmp_path / "cells/slide.geojson"
    detector = planted.detector(after=lambda: geojson.write_text("exported meanwhile"))
    assert predict_here(png, slide_mpp=0.25, detector=detector) == 2
    assert "slide.geojson" in capsys.readouterr().err
    assert geojson.read_text() == "exported meanwhile"


def test_the_overview_of_all_slides_is_kept_aside(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    overview = tmp_path / "cells/summary.csv"
    overview.write_text("of users")
    assert predict_here(png, slide_mpp=0.25) == 0
    assert (tmp_path / "cells/summary.csv.bak").read_text() == "of users"
    assert predict_here(png, slide_mpp=0.25) == 0
    assert not (tmp_path / "cells/summary.csv.bak2").exists()
    overview.write_text(overview.read_text() + "a note")
    assert predict_here(png, slide_mpp=0.25) == 0
    assert (tmp_path / "cells/summary.csv.bak2").read_text().endswith("a note")


def test_killed_between_two_files_it_goes_on(predict_here: Predict, png: Path, monkeypatch: Any) -> None:
    replace, calls = Path.replace, []

    def dies(self: Path, target: Path) -> Path:
        if self.parent.name == "new":
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_here(png, slide_mpp=0.25)
    assert predict_here(png, slide_mpp=0.25) == 0


@pytest.mark.parametrize("place", ["cells/sub", "cells/sub/.slide.cells", "cells/sub/.slide.cells/cells.bin"])
def test_links_out_of_the_output_folder_are_refused(
    predict_here: Predict, png: Path, tmp_path: Path, place: str
) -> None:
    folder, elsewhere = tmp_path / "slides/sub", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    png.rename(folder / png.name)
    if place.endswith(".bin"):
        elsewhere.write_text("precious")
    else:
        elsewhere.mkdir()
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{place} is a link"):
        predict_here(tmp_path / "slides", slide_mpp=0.25)
    assert elsewhere.read_text() == "precious" if elsewhere.is_file() else not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["-rf.png", "a\nfailed: b.png", "é ü.png"])
def test_odd_file_names(
    predict_here: Predict, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    plant(100, 100).image.save(folder / name)
    assert predict_here(folder, slide_mpp=0.25, report=True) == 0
    stem = name.removesuffix(".png")
    names = {path.name for path in (tmp_path / "cells").iterdir()}
    assert {f"{stem}.geojson", f"{stem}.csv", f"{stem}.html", f"{stem}.summary.json"} <= names
    (folder / name).write_bytes(b"broken")
    os.utime(folder / name, ns=(1, 1))
    assert predict_here(folder, slide_mpp=0.25, out=tmp_path / "other") == 2
    assert not [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("failed: b")]


def test_an_unforeseen_error_costs_one_slide(
    predict_here: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "abc":
        plant(100, 100).image.save(folder / f"{name}.png")
    calls: list[None] = []

    def fails_once() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise IndexError("tile table")

    assert predict_here(folder, slide_mpp=0.25, detector=planted.detector(after=fails_once)) == 3
    log = tmp_path / "cells/b.failure.log"
    assert "IndexError: tile table" in log.read_text() and "Traceback" in log.read_text()
    error = capsys.readouterr().err
    assert "b.failure.log" in error and "Traceback" not in error
    assert {path.name for path in (tmp_path / "cells").glob("*.geojson")} == {"a.geojson", "c.geojson"}
    assert predict_here(folder, slide_mpp=0.25) == 0
    assert not log.exists()


ABORTS = """
import os, signal, sys
from pathlib import Path
from finetune.predict.config import PredictConfig
from finetune.predict.supervise import SlideLog, supervise
from shared.cli import run
from shared.model.detector_file import LoadedDetector
from shared.signals import StopSignal
from shared.wsi import image_source
from tests.finetune.predict import planted
LoadedDetector.load = classmethod(lambda _, path, *__: planted.detector(path=path))
opened = image_source.Picture.open.__func__
def dies(cls, path, *options):
    if path.stem == "b":
        os.kill(os.getpid(), int(sys.argv[1]))
    return opened(cls, path, *options)
image_source.Picture.open = classmethod(dies)
MORE = {}
def predict_slides():
    from finetune.predict.run import predict
    options = {"slide_mpp": 0.25, "workers": 0, "report": False, **MORE}
    config = PredictConfig(detector=Path("detector.pth"), sources=(Path("slides"),), **options)
    return predict(config, stop, log)
stop, log = StopSignal(), SlideLog()
run(lambda: supervise(predict_slides, log))
"""


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_process_that_dies_costs_one_slide(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "detector.pth").touch()
    for name in "abc":
        plant(100, 100).image.save(tmp_path / f"slides/{name}.png")
    words = [sys.executable, "-c", ABORTS, str(int(number))]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert {path.name for path in (tmp_path / "cells").glob("*.geojson")} == {"a.geojson", "c.geojson"}
    assert done.stdout.count("[1/3]") == 1
    log = (tmp_path / "cells/b.failure.log").read_text()
    assert ("in dies" in log) == (number == signal.SIGABRT)
    assert "1 of 3 slides failed (slides/b.png)" in done.stderr


SLOW = ABORTS.replace("planted.detector()", "planted.detector(after=lambda: time.sleep(0.2))").replace(
    "MORE = {}", 'import time; MORE = {"batch_size": 1, "tile": 320}'
)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGKILL])
def test_signals_to_the_command_stop_the_prediction(tmp_path: Path, number: signal.Signals) -> None:
    """Warned, it stops with the code of a stopped one; killed, it leaves no process behind that goes on."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "detector.pth").touch()
    plant(2400, 1600).image.save(tmp_path / "slides/a.png")  # 19 x 13 tiles
    progress = tmp_path / "cells/.a.cells/cells.bin"
    words = [sys.executable, "-c", SLOW, "6"]
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        while not progress.exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        process.communicate()  # until the child closes the pipe, too
    assert process.returncode == (85 if number == signal.SIGUSR2 else -9)
    assert (progress.parent / "progress.json").exists()
    assert not (tmp_path / "cells/a.summary.json").exists()


def test_the_summary_names_the_digests(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    assert predict_here(png, slide_mpp=0.25) == 0
    files = json.loads((tmp_path / "cells/slide.summary.json").read_text())["files"]
    listed = "".join(f"{digest}  slide.{ending}\n" for ending, digest in files.items())
    check = ["sha256sum", "--check", "--strict"]
    subprocess.run(check, input=listed, cwd=tmp_path / "cells", text=True, check=True, capture_output=True)
