"""Two gloo processes with half of the images each end as one with all of them, as far as the methods allow.

Not MoCo's batch norms: queries see a rank's share, keys a drawn one, by design; here they are held, and all
else (the drawing and its undoing, keys of all ranks in the queue, gradients) has to agree. Those of SwAV and
DINO see the images of all ranks.
"""

import contextlib
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from shared.training import distributed
from shared.training.distributed import World, replicated
from ssl_pretrain.methods import Step
from ssl_pretrain.methods.moco_v2 import MoCo
from ssl_pretrain.methods.sync_batch_norm import synchronise
from tests.conftest import ENVIRONMENT, free_port
from tests.ssl_pretrain import tiny

NAMES = ("moco_v2_resnet50", "swav_resnet50", "swav_resnet50_256", "dino_resnet50", "dino_vitb")
STEPS, IMAGES = 5, 6
FIELDS = {"queue_length": 12, "queue_after": 6}  # used from the fourth step on


def some_steps(name: str, world: World) -> dict[str, Tensor]:
    """Return the state after some steps of gradient descent; this rank handles its share of the images."""
    torch.manual_seed(0)
    fields = FIELDS if name == "swav_resnet50_256" else {"drop_path": 0.0} if name == "dino_vitb" else {}
    method = tiny.method(name, **fields).build()
    if world.size > 1 and method.config.batch_norm_ranks > 1:
        synchronise(method, method.config.batch_norm_ranks)
    model = replicated(method, world, send_buffers=False)
    if isinstance(method, MoCo):
        for norm in (module for module in method.modules() if isinstance(module, _BatchNorm)):
            norm.eval()
    optimiser = torch.optim.SGD(method.parameters(), lr=0.05)
    sizes = [crop.size for crop in method.config.crops for _ in range(crop.count)]
    share = IMAGES // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    losses = []
    for number in range(STEPS):
        random, step = torch.Generator().manual_seed(number), Step(number, number * IMAGES, 100)
        views = [torch.randn(IMAGES, 3, size, size, generator=random)[mine] for size in sizes]
        torch.manual_seed(100 * world.rank + number)  # as in a run, ranks draw their own numbers
        loss = model(views, step)
        loss.backward()
        method.before_update(step)
        optimiser.step()
        optimiser.zero_grad()
        method.after_step(step)
        losses.append(distributed.mean_over_ranks(loss.detach()))
    return {"losses": torch.stack(losses), **method.state_dict()}


def all_methods(world: World) -> dict[str, dict[str, Tensor]]:
    """In float64, losses too, because a few steps blow up the rounding of float32."""
    with contextlib.ExitStack() as changes:
        changes.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        changes.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        return {name: some_steps(name, world) for name in NAMES}


AS_A_RANK = """
import sys, torch
from shared.training import distributed
from tests.ssl_pretrain.methods.test_two_ranks import all_methods
world = distributed.start()
torch.save(all_methods(world), sys.argv[1])
distributed.stop()
"""


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AS_A_RANK, folder / f"{rank}.pt"],
            env={**ENVIRONMENT, **address, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(250) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def of_one() -> dict[str, dict[str, Tensor]]:
    return all_methods(World(0, 0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one_with_the_doubled_batch(name: str, of_ranks: list, of_one: dict):
    for found in of_ranks:
        for key, value in of_one[name].items():
            torch.testing.assert_close(
                found[name][key], value, rtol=1e-8, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}"
            )
