"""The detector's family on a GPU that is not there: in training, in inference, as a counter."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune import step
from finetune.predict.search import inference
from finetune.training import criterion, matching
from finetune.training.criterion import CriterionConfig, Targets
from finetune.training.tile_loader import Batch
from patch_extraction.counters import detector as counter
from shared.model import decoders
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.training.precision import autocast
from tests.pretended_gpu import GPU, moved, pretended_gpu

SMALL = {"arch": "regnetx_002", "classes": 2, "channels": 16, "hidden": 16}
SINGLE = {"multi_scale": False, "deformable": False}
VARIANTS = {
    "DPA-P2PNet": {},
    "P2PNet": SINGLE,
    "E2E": {**SINGLE, "summed": True},
    "multi-scale": {"deformable": False},
    "refinement": {"deformable": False, "refinements": 2},
    "two fields of view": {"views": 2},
    "three, bilinear": {"views": 3, "upsampling": "bilinear"},
    "ViT-Adapter": {"arch": "vit_tiny_patch16_224"},
}
SIDE = 100


def detector_of(variant: str) -> DPAP2PNet:
    return DPAP2PNet(DetectorConfig(**{**SMALL, **VARIANTS[variant]}))


def images(variant: str, count: int = 2) -> Tensor:
    views = VARIANTS[variant].get("views", 1)
    return torch.zeros(count, *([views] if views > 1 else []), 3, SIDE, SIDE, dtype=torch.uint8)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the cost matrices, whose values nobody knows; the first proposals are matched."""
    shapes: list[tuple[int, ...]] = []

    def solve(cost_MN: Tensor, _competing_N: Tensor) -> tuple[np.ndarray, np.ndarray]:
        shapes.append(tuple(cost_MN.shape))
        return np.arange(min(cost_MN.shape)), np.arange(min(cost_MN.shape))

    monkeypatch.setattr(matching, "_solve", solve)
    return shapes


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether values are finite, the host has to be told."""
    monkeypatch.setattr(step, "_require_finite", lambda *_: None)


class Passes:
    """A step in two accumulated passes: what `finetune.step` does but for reading values for the log."""

    def __init__(self, variant: str) -> None:
        detector = detector_of(variant)
        self.dtypes: dict[str, set[torch.dtype]] = {}
        for name, module in detector.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                seen = self.dtypes.setdefault(name, set())
                module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.add(out.dtype))
        recipe = SimpleNamespace(accumulate=2, precision="auto")
        objective = CriterionConfig().objective(detector.config, 1)
        cells = [Targets(torch.zeros(n, 2), torch.zeros(n, dtype=torch.long)) for n in (5, 0, 3, 1)]
        with pretended_gpu() as self.gpu:
            moved(detector).train()
            optimiser = torch.optim.AdamW(detector.parameters(), fused=True)
            batch = Batch(images(variant, 4), cells).to(GPU)
            self.uploads = len(self.gpu.uploads)
            state = SimpleNamespace(model=detector, objective=objective, step=0)
            self.losses = step._add_gradients(recipe, state, batch)
            self.norm = nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimiser.step()
            self.state = [
                *detector.state_dict().values(),
                *(p.grad for p in detector.parameters() if p.requires_grad),
            ]


def require_fit_for_a_gpu(passes: Passes) -> None:
    """Everything on the device, the trunk in bfloat16, the decoder in float32, one wait a pass: for the costs."""
    assert passes.losses.device == GPU and passes.losses.dtype == torch.float32
    assert passes.norm.device == GPU
    assert all(tensor is None or tensor.device == GPU for tensor in passes.state)
    assert len(passes.gpu.waits) == 2 and all("matching.py" in wait for wait in passes.gpu.waits)
    assert len(passes.gpu.uploads) - passes.uploads == 5  # counts and indices of both passes, and their divisors
    ran = {name: dtypes for name, dtypes in passes.dtypes.items() if dtypes}
    expected = {name: {torch.float32 if name.startswith("decoder.") else torch.bfloat16} for name in ran}
    assert ran == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_waits_once_a_pass(variant: str, solved: list):
    require_fit_for_a_gpu(Passes(variant))
    assert [shape[0] for shape in solved] == [5, 0, 3, 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_stays_on_the_device(variant: str, monkeypatch: pytest.MonkeyPatch):
    """In evaluation and prediction, up to the detections, of which the host then reads which are cells."""
    detector, seen = detector_of(variant).eval(), []
    monkeypatch.setattr(decoders, "detected_cells", lambda *found: seen.append(found))
    monkeypatch.setattr(inference, "reported_cells", lambda *_: None)
    reader = SimpleNamespace(tiling=None, batches=[[0, 1]], bytes_of=lambda _: 0)
    with pretended_gpu() as gpu:
        moved(detector)
        windows = [inference.WindowBatch(0, [0, 1], images(variant), [])]
        monkeypatch.setattr(inference, "BatchWorkers", lambda *_, **__: nullcontext(windows))
        list(inference.find_cells(SimpleNamespace(network=detector, device=GPU, classes=()), reader, [0]))
    ((*found, threshold),) = seen
    assert not gpu.waits and len(gpu.uploads) == 1
    assert threshold is None and len(found[0]) == 2
    assert all(tensor.device == GPU and tensor.dtype == torch.float32 for tensor in found)


def test_a_counter_counts_on_the_device(monkeypatch: pytest.MonkeyPatch):
    detector, seen = detector_of("DPA-P2PNet").eval(), []
    with pretended_gpu() as gpu:
        moved(detector)
        loaded = SimpleNamespace(network=detector, device=GPU, mpp=0.5, metadata={})
        monkeypatch.setattr(counter, "_loaded", lambda _: loaded)
        monkeypatch.setattr(decoders, "detected_cells", lambda *found: [seen.append(found)] * 0)
        counting = object.__new__(counter.DetectorCounter)
        counting._path = None
        counting.find_each([np.zeros((64, 64, 3), np.uint8)] * 3, 0.25)
    ((*found, _),) = seen
    assert all(tensor.device == GPU for tensor in found) and len(found[0]) == 3
    assert len(gpu.waits) == 1  # the patches


def _tensor_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = matching.assign
    monkeypatch.setattr(matching, "assign", lambda *given: solved(*given).cpu())


def _value_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = criterion.detection_loss
    monkeypatch.setattr(
        criterion, "detection_loss", lambda *given: (given[1].points_BN2.sum().item(), loss(*given))[1]
    )


def _lost_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "autocast", lambda device, *_, **__: autocast(device, "float32"))


@pytest.mark.parametrize("plant", [_tensor_on_the_host, _value_on_the_host, _lost_autocast])
def test_planted_faults_are_found(plant: Callable, solved: list, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        require_fit_for_a_gpu(Passes("DPA-P2PNet"))
