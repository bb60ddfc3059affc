"""What the tests of predictions share: a detector that finds what was planted."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.predict.config import PredictConfig
from finetune.predict.run import predict
from shared.model.detector_file import LoadedDetector
from shared.signals import StopSignal
from tests.finetune.predict import planted

Predict = Callable[..., int]


@pytest.fixture
def predict_here(tmp_path: Path, stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Predicts in this process with the detector that finds what was planted; returns the exit code."""
    (tmp_path / "detector.pth").write_text("squares")

    def run(
        *sources: Path, detector: LoadedDetector | None = None, stopped: StopSignal = stop, **options: Any
    ) -> int:
        found = dataclasses.replace(detector or planted.detector(), path=tmp_path / "detector.pth")
        monkeypatch.setattr(LoadedDetector, "load", lambda *_: found)
        defaults = {"out": tmp_path / "cells", "workers": 0, "report": False}
        config = PredictConfig(detector=tmp_path / "detector.pth", sources=sources, **{**defaults, **options})
        return predict(config, stopped)

    return run
