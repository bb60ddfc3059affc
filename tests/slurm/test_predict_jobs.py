"""`python -m finetune.predict ... --launcher slurm`: parts of the slides as elements of a job array."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.model.detector_file import save_detector
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from tests.slurm.checkout import ONE_CORE
from tests.slurm.cluster import Cluster

GIVEN = ["detector.pth", "pictures", "--slide-mpp", "0.5", "--workers", "0", "--no-report"]
ASKED = [*ONE_CORE, "--parts", "2"]


def write_case(folder: Path) -> None:
    """Write an untrained detector and three pictures of noise."""
    torch.manual_seed(0)
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", classes=2, interval=8, channels=16, hidden=16))
    metadata = {"classes": ["negative", "positive"], "mpp": 0.5, "recipe": "test"}
    save_detector(folder / "detector.pth", detector, metadata)
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        image = random.integers(0, 200, (192, 256, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "pictures" / f"{name}.png")


def predict(folder: Path, out: str, cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Predict as a user does."""
    return cluster.stage("finetune.predict", *GIVEN, "--out", out, *words, cwd=folder)


def tables(folder: Path) -> dict[str, str]:
    """Return the cells of every picture, as CSV."""
    return {path.name: path.read_text() for path in folder.rglob("*.csv") if "jobs" not in path.parts}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jobs_find_what_one_process_finds(slurm: Cluster, tmp_path: Path):
    write_case(tmp_path)
    here = predict(tmp_path, "here", slurm)
    assert here.returncode == 0, here.stdout + here.stderr
    there = predict(tmp_path, "there", slurm, *ASKED)
    assert there.returncode == 0, there.stdout + there.stderr
    assert there.stdout.count("COMPLETED") == 2
    wanted = tables(tmp_path / "here")
    assert all(len(wanted[f"{name}.csv"].splitlines()) > 10 for name in "abc")
    assert tables(tmp_path / "there") == wanted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_picture_that_fails_is_named_and_the_rest_is_done(slurm: Cluster, tmp_path: Path):
    write_case(tmp_path)
    (tmp_path / "pictures" / "b.png").write_bytes(b"no picture")
    done = predict(tmp_path, "cells", slurm, *ASKED)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "b.png" in done.stdout + done.stderr
    assert {"a.csv", "c.csv"} <= tables(tmp_path / "cells").keys()
