import os
from pathlib import Path

import pytest
import torch

from shared.training import precision as module
from shared.training.precision import autocast, set_backends
from shared.training.run_folder import provenance


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", torch.float32),
        ("cpu", "float32", torch.float32),
        ("cpu", "bfloat16", torch.bfloat16),
        pytest.param("cuda", "auto", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", "float32", torch.float32, marks=pytest.mark.gpu),
    ],
)
def test_products_are_in_the_precision_asked_for(device, precision, expected):
    matrix = torch.ones(4, 4, device=device)
    with autocast(torch.device(device), precision):
        assert (matrix @ matrix).dtype == expected
    assert (matrix @ matrix).dtype == torch.float32


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_training_is_in_bfloat16_where_the_processor_computes_in_it(supported, expected, monkeypatch):
    monkeypatch.setattr(module, "processor_computes_bfloat16", lambda: supported)
    matrix = torch.ones(4, 4)
    with autocast(torch.device("cpu"), training=True):
        assert (matrix @ matrix).dtype == expected
    with autocast(torch.device("cpu")):
        assert (matrix @ matrix).dtype == torch.float32


def test_detection_of_bfloat16_agrees_with_the_kernel():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo on this system")
    flags = cpuinfo.read_text(encoding="utf-8").split()
    assert module.processor_computes_bfloat16() == ("amx_tile" in flags or "avx512_bf16" in flags)


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_are_chosen_and_recorded(deterministic: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_backends(deterministic)
    found = provenance()["backends"]
    chosen = "CUBLAS_WORKSPACE_CONFIG" in os.environ
    set_backends(False)
    assert found == {
        "cudnn_benchmark": not deterministic,
        "tf32": not deterministic,
        "deterministic": deterministic,
    }
    assert chosen == deterministic
