"""What a run's lines say of the GPU."""

import json
from pathlib import Path

import pytest
import torch

from shared.training import gpu_usage
from shared.training.distributed import World
from shared.training.gpu_usage import utilisation
from shared.training.run_folder import Run
from ssl_pretrain.recipes import MAE_DEMO, RECIPES
from ssl_pretrain.run import step_logger
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.flops import flops_per_image
from ssl_pretrain.run.step_logger import StepLogger


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae_vitb", 58.8e9),
        ("moco_v2_resnet50", 32.5e9),
        pytest.param("swav_resnet50", 75.4e9, marks=pytest.mark.slow),
        pytest.param("dino_resnet50", 100.7e9, marks=pytest.mark.slow),
        pytest.param("dino_vitb", 436e9, marks=pytest.mark.slow),
    ],
)
def test_operations_are_those_counted_from_the_official_networks(name: str, expected: float):
    state = torch.get_rng_state()
    assert flops_per_image(RECIPES[name]) == pytest.approx(expected, rel=0.02)
    assert torch.equal(torch.get_rng_state(), state)


def test_utilisation_is_a_share_of_all_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_usage, "peak_flops", lambda device: 312e12)
    monkeypatch.setattr(gpu_usage, "memory_gb", lambda device: 38.123)
    # 2,400 images/s of MAE on one A100 are 45 % of it; 8 GPUs with as many each as well.
    for ranks in (1, 8):
        used = utilisation(58.8e9, 2400 * ranks, ranks, torch.device("cpu"))
        assert used == {"mfu_percent": 45.2, "memory_gb": 38.12}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert gpu_usage.peak_flops(torch.device("cuda")) == peak
    assert gpu_usage.peak_flops(torch.device("cpu")) is None


def test_a_line_holds_what_is_known(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch):
    def lines() -> dict:
        run = Run(tmp_path / "run", MAE_DEMO)
        with StepLogger(run, BatchPlan.of(MAE_DEMO, 1), world, first_step=0) as watch:
            watch.step_done(torch.tensor(1.0))
            watch.flush()
        run.close()
        return json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])

    assert not {"mfu_percent", "memory_gb"} & lines().keys()  # on a CPU
    monkeypatch.setattr(step_logger, "utilisation", lambda *_: {"mfu_percent": 12.5, "memory_gb": 1.5})
    assert {"mfu_percent": 12.5, "memory_gb": 1.5}.items() <= lines().items()
