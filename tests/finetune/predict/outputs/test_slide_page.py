"""The report in a real browser: nothing but the file, every cell drawn."""

import dataclasses
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.finetune.predict import planted
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
    """Return what a headless browser, without network, makes of a page."""
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    words += ["--proxy-server=127.0.0.1:9", "--window-size=1300,1200", "--virtual-time-budget=6000", *options]
    done = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


class Tags(HTMLParser):
    """Collects the tags of a page and the text of its scripts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.scripts: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x>', "</script><b>", "{{ data }}"])
def test_names_of_classes_are_text(predict_here: Predict, tmp_path: Path, name: str) -> None:
    """The page has the same tags whatever classes, ratios and files are called."""
    plain = planted.detector()
    tags = []
    for folder, classes, stem, ratio in (
        ("plain", plain.classes, "slide", "R"),
        ("odd", (name, "blue"), "<i>slide", f"<b>{name.replace('=', '')}"),
    ):
        (tmp_path / folder).mkdir()
        plant(100, 100).image.save(tmp_path / folder / f"{stem}.png")
        options = {"ratio": (f"{ratio} = cells / 2",), "report": True, "slide_mpp": 0.25}
        detector = dataclasses.replace(plain, classes=classes)
        assert (
            predict_here(tmp_path / folder / f"{stem}.png", out=tmp_path / folder, detector=detector, **options)
            == 0
        )
        page = Tags(tmp_path / folder / f"{stem}.html")
        assert [each["name"] for each in json.loads(page.scripts[0])["classes"]] == list(classes)
        tags.append(page.tags)
    assert tags[0] == tags[1]


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
