"""When the loop looks up from its steps."""

from pathlib import Path

import pytest
import torch

from shared.training.distributed import World
from shared.training.run_folder import Run
from ssl_pretrain.recipes import MAE_DEMO
from ssl_pretrain.run import step_logger
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.step_logger import StepLogger
from tests.ssl_pretrain.stub import changed


@pytest.mark.parametrize(
    ("seconds", "looks"),
    [
        (0.1, [6, 10, 20, 30, 40]),  # every ten steps, after the first, which tells the speed
        (3.0, [6, 9, 10, 13, 16, 19, 20, 23, 26, 29, 30, 33, 36, 39, 40]),  # about every 10 s
        (60.0, list(range(6, 41))),
    ],
)
def test_looks_every_ten_steps_or_ten_seconds(
    seconds: float, looks: list[int], tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(step_logger.time, "perf_counter", lambda: now[0])
    recipe = changed(MAE_DEMO, log_every=10, samples_seen=60 * 64)
    found = []
    with StepLogger(
        Run(tmp_path / "run", recipe, writes=False), BatchPlan.of(recipe, 1), world, first_step=5
    ) as watch:
        for step in range(6, 41):
            now[0] += seconds
            watch.step_done(torch.tensor(1.0))
            if watch.is_due:
                watch.flush()
                found.append(step)
    assert found == looks
