"""`--slide-mpp`: one range in all stages. 40 is an objective, 0.00025 are millimetres."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets.__main__ import main as datasets
from finetune.predict.__main__ import main as predict
from patch_extraction.__main__ import main as harvest
from patch_extraction.count_check import main as count_check
from tests.conftest import InProcess

COMMANDS = {
    "harvest": (harvest, ("--wsi-dir", "slides", "--slide-mpp", "{}"), "--slide-mpp"),
    "count check": (count_check, ("field={}",), "field"),
    "predict": (predict, ("detector.pth", "slides", "--slide-mpp", "{}"), "--slide-mpp"),
    "import": (datasets, ("import", "cells.geojson", "--slides", "slides", "--slide-mpp", "{}"), "--slide-mpp"),
    "summary": (datasets, ("summary", "field", "--slide-mpp", "{}"), "--slide-mpp"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("mpp", ["40", "0.00025", "nan"])
def test_other_units_are_refused(in_process: InProcess, tmp_path: Path, monkeypatch, name, mpp):
    main, words, named = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    for folder in ("slides", "field/images", "field/points"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("field/images/a.png")
    Path("field/points/a.csv").write_text("x,y,class\n3,4,1\n")
    Path("slides/a.svs").write_text("text")
    Path("cells.geojson").write_text("[]")
    code, _, stderr = in_process(main, *(word.format(mpp) for word in words))
    assert code == 2
    assert named in stderr.splitlines()[-1]
    assert "0.05" in stderr.splitlines()[-1]
