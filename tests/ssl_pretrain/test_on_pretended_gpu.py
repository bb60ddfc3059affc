"""Two steps of every published recipe, with tiny networks, on a GPU that is not there.

What would cost a run on a real one is seen here: tensors on the wrong device, products that lost autocast, hosts
that wait for the device. One of each is planted in the end.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.testing._internal.distributed.fake_pg import FakeStore

from shared.training.distributed import World
from ssl_pretrain.data.crops import each_crop
from ssl_pretrain.data.views import Views
from ssl_pretrain.inspection.feature_metrics import features_of
from ssl_pretrain.methods import Method
from ssl_pretrain.methods.dino import DINO
from ssl_pretrain.methods.sync_batch_norm import GroupBatchNorm, synchronise
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.state import PretrainingState
from ssl_pretrain.train import update
from tests.pretended_gpu import GPU, moved, pretended_gpu
from tests.ssl_pretrain import tiny

STEPS = 2
# Products in float32 by design: cosines that a temperature multiplies, and blurs of images.
IN_FLOAT32 = {"dino": ("student.head.last_layer", "teacher.head.last_layer"), "swav": ("prototypes",)}


class Steps:
    """What two steps of a recipe left behind."""

    def __init__(self, recipe: PretrainingRecipe, world: World, ranks: int = 1) -> None:
        plan = BatchPlan.of(recipe, ranks)
        self.method: Method = recipe.method.build()
        if ranks > 1 and recipe.method.batch_norm_ranks > 1:
            synchronise(self.method, recipe.method.batch_norm_ranks)
        if recipe.checkpoint_activations:
            self.method.checkpoint_activations()
        views = Views(recipe.views, recipe.method.crops, (0.7, 0.6, 0.6), (0.2, 0.2, 0.2))
        self.losses: list[Tensor] = []
        self.dtypes: dict[str, set[torch.dtype]] = {}
        with pretended_gpu() as self.gpu:
            moved(views)
            moved(self.method)
            self._record_products()
            state = PretrainingState(self.method, recipe.optimiser.build(self.method), layout=None)
            sizes = [crop.size for crop in each_crop(recipe.method.crops)]
            crops = [torch.zeros(plan.micro_batch, 3, size, size, dtype=torch.uint8) for size in sizes]
            for _ in range(STEPS):
                self.losses.append(update(plan, state, views, lambda: crops, world))
                self.measures = self.method.measures()
                state.step += 1
            self.uploads = len(crops) * plan.accumulation * STEPS
            self.state = [*self.method.state_dict().values(), *_tensors(state.optimiser)]

    def _record_products(self) -> None:
        for name, module in self.method.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                seen = self.dtypes.setdefault(name, set())
                module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.add(out.dtype))


def _tensors(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Moments; AdamW's count of steps as well, which the fused kernel has on the device."""
    return [value for state in optimiser.state.values() for value in state.values() if isinstance(value, Tensor)]


@pytest.fixture
def gpu_world() -> World:
    return World(rank=0, local_rank=0, size=1, device=GPU)


@pytest.fixture
def eight_ranks() -> Iterator[World]:
    """As the first of eight, whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield World(rank=0, local_rank=0, size=8, device=GPU)
    dist.destroy_process_group()


def recipe_of(name: str, folder: Path, **fields: object) -> PretrainingRecipe:
    return tiny.recipe(name, folder, folder, **fields)


def require_fit_for_a_gpu(steps: Steps) -> None:
    """Everything on the device, in the dtypes of autocast, and nothing that the host waits for."""
    assert not steps.gpu.waits
    assert len(steps.gpu.uploads) == steps.uploads  # the crops
    assert all(loss.device == GPU and loss.dtype == torch.float32 and loss.ndim == 0 for loss in steps.losses)
    assert all(tensor.device == GPU for tensor in [*steps.measures.values(), *steps.state])
    assert all(p.dtype == torch.float32 for p in steps.method.parameters())
    expected = IN_FLOAT32.get(steps.method.config.name, ())
    ran = {module: dtypes for module, dtypes in steps.dtypes.items() if dtypes}
    assert len(ran) > 3
    assert {module: dtypes for module, dtypes in ran.items() if module not in expected} == {
        module: {torch.bfloat16} for module in ran if module not in expected
    }
    assert all(ran[module] == {torch.float32} for module in expected)
    assert steps.gpu.products[torch.bfloat16] > steps.gpu.products[torch.float32]


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_step_never_waits_and_is_computed_as_autocast_should(name: str, tmp_path: Path, gpu_world: World):
    steps = Steps(recipe_of(name, tmp_path), gpu_world)
    require_fit_for_a_gpu(steps)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_as_one_of_eight_ranks_and_with_activations_computed_again(name: str, tmp_path: Path, eight_ranks: World):
    recipe = recipe_of(name, tmp_path, batch_size=64, checkpoint_activations=True)
    steps = Steps(recipe, eight_ranks, ranks=8)
    require_fit_for_a_gpu(steps)
    synchronised = sum(isinstance(module, GroupBatchNorm) for module in steps.method.modules())
    assert bool(synchronised) == (name.startswith("swav") or name == "dino_resnet50")


def test_key_weights_are_cast_once_a_pass(tmp_path: Path, gpu_world: World):
    """Not once a group of keys: eight times a step on one GPU."""
    casts = []
    for group in (4, 2):
        recipe = recipe_of("moco_v2_resnet50", tmp_path, method=tiny.method("moco_v2_resnet50", key_group=group))
        steps = Steps(recipe, gpu_world)
        casts.append(steps.gpu.casts)
    weights = sum(p.ndim > 1 for p in steps.method.key.parameters())
    passes = 2 * STEPS
    assert casts[1] - casts[0] < passes * weights / 2  # a further group's images and features only


def test_features_are_measured_on_the_device_and_copied_once_a_part(tmp_path: Path):
    recipe = recipe_of("mae_vitb", tmp_path)
    method = recipe.method.build().eval()
    views = Views(recipe.views, recipe.method.crops, (0.7, 0.6, 0.6), (0.2, 0.2, 0.2))
    with pretended_gpu() as gpu:
        moved(method)
        moved(views)
        features = features_of(method.backbone(), torch.zeros(128, 3, 32, 32, dtype=torch.uint8), views.normalise)
    assert features.device.type == "cpu" and features.dtype == torch.float32
    assert len([wait for wait in gpu.waits if "from cuda" in wait]) == 1


def _tensor_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_pretrain.methods.moco_v2.info_nce", lambda logits_BK: logits_BK[:, 0].mean().cpu())


def _value_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DINO, "after_step", lambda self, _step: self.criterion.center.sum().item())


def _lost_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ssl_pretrain.train.autocast", lambda device, *_: torch.autocast(device.type, enabled=False)
    )


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("moco_v2_resnet50", _tensor_on_the_host),
        ("dino_vitb", _value_on_the_host),
        ("mae_vitb", _lost_autocast),
    ],
)
def test_planted_faults_are_found(
    name: str, plant, tmp_path: Path, gpu_world: World, monkeypatch: pytest.MonkeyPatch
):
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, DataDependentOutputException)):
        require_fit_for_a_gpu(Steps(recipe_of(name, tmp_path), gpu_world))
