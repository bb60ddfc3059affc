"""The report in a real browser: nothing but the file, every cell drawn."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.finetune.predict.conftest import Predict
from tests.finetune.predict.planted import plant

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)})")
    return found


def look(browser: str, page: Path, profile: Path, *options: str) -> str:
    """What a headless browser, without network, makes of a page."""
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    words += ["--proxy-server=127.0.0.1:9", "--window-size=1300,1200", "--virtual-time-budget=6000", *options]
    done = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_page_in_a_browser(predict_here: Predict, browser: str, tmp_path: Path) -> None:
    image = plant(400, 300, mpp=0.5)
    image.image.save(tmp_path / "a <b>.png")
    assert predict_here(tmp_path / "a <b>.png", slide_mpp=0.5, report=True, ratio=("R = red / cells",)) == 0
    page = tmp_path / "cells/a <b>.html"
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page.read_text())  # nothing from elsewhere
    shot = tmp_path / "shot.png"
    dom = look(browser, page, tmp_path / "profile", "--dump-dom")
    assert f'data-drawn="{len(image.labels_N)}"' in dom
    assert "<h1>a &lt;b&gt;.png</h1>" in dom
    assert f"<td>{(image.labels_N == 0).sum()}</td>" in dom
    assert "R = red / cells" in dom
    look(browser, page, tmp_path / "profile", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    for colour in ((0, 229, 255), (255, 230, 0)):  # of the two classes' circles
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 30).sum() > 1000
