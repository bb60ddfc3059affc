"""Whole runs of every recipe with tiny networks: resumed and killed ones end bit for bit as straight ones."""

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from shared.signals import StopSignal
from shared.training import checkpoint
from shared.training.distributed import World
from shared.weights import weights_file
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.train import train
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.conftest import tissue, write_shards
from tests.ssl_pretrain.stub import changed

ALONE = World(0, 0, 1, torch.device("cpu"))
# What of a method is neither a network nor an optimiser, and has to be there again after an interruption.
REMEMBERED = {
    "moco_v2_resnet50": {"queue.rows_ND", "queue.place", "key.trunk.bn1.running_mean"},
    "swav_resnet50": {"prototypes.weight"},
    "swav_resnet50_256": {"prototypes.weight", "queues.0.rows_ND", "queues.1.rows_ND", "queues.0.place"},
    "dino_resnet50": {"criterion.center", "teacher.trunk.bn1.running_mean", "teacher.head.last_layer.weight_v"},
    "dino_vitb": {"criterion.center", "teacher.trunk.pos_embed", "teacher.head.last_layer.weight_v"},
    "mae_vitb": {"decoder.mask_token"},
}


class Straight(NamedTuple):
    """A run of ten steps without a break."""

    recipe: PretrainingRecipe
    state: dict[str, Any]
    losses: list[float]


def run(recipe: PretrainingRecipe) -> None:
    torch.set_num_threads(1)  # a forked process has lost the others
    assert train(recipe, ALONE, StopSignal()) == 0


def state_of(recipe: PretrainingRecipe) -> dict[str, Any]:
    found = checkpoint.resume(recipe.run_dir, recipe.name)
    assert found is not None
    return found


def losses_of(recipe: PretrainingRecipe) -> list[float]:
    lines = (recipe.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if '"loss"' in line]


def assert_same(found: Any, expected: Any, where: str = "state") -> None:
    """Bit for bit, all that a checkpoint holds."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}.{number}")
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected, where


@pytest.fixture(scope="module", params=tiny.NAMES)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder = tmp_path_factory.mktemp("straight")
    shards = write_shards(folder / "shards", [24, 16], tissue)
    recipe = tiny.recipe(request.param, shards, folder, max_steps=10)
    torch.manual_seed(random.getrandbits(32))  # what was drawn before does not matter
    run(recipe)
    return Straight(recipe, state_of(recipe), losses_of(recipe))


def elsewhere(straight: Straight, folder: Path, **fields: object) -> PretrainingRecipe:
    return changed(straight.recipe, run_dir=folder / "run", out=folder / "out.pth", **fields)


def test_twice_five_steps_are_ten(straight: Straight, tmp_path: Path):
    """Five steps are an epoch; what is frozen at first, or a queue, changes in the third."""
    recipe = elsewhere(straight, tmp_path)
    run(changed(recipe, max_steps=5))
    half = state_of(recipe)
    run(recipe)
    assert_same(state_of(recipe), straight.state)
    assert losses_of(recipe) == straight.losses
    names = REMEMBERED[recipe.name]
    assert names <= straight.state["networks"].keys()
    same = {name for name in names if torch.equal(half["networks"][name], straight.state["networks"][name])}
    assert same <= {"queue.place", "queues.0.place"}  # which a ring may come back to


def test_killed_twice_it_ends_with_the_same_state(straight: Straight, tmp_path: Path):
    """At a random step, then while it writes a checkpoint."""
    recipe = elsewhere(straight, tmp_path, checkpoint_every=2)
    metrics, moment = recipe.run_dir / "metrics.jsonl", random.randint(3, 7)
    killed_when(recipe, lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= moment)
    killed_when(recipe, lambda: bool(list(recipe.run_dir.glob(".checkpoint-*.tmp"))))
    run(recipe)
    assert_same(state_of(recipe), straight.state)
    assert losses_of(recipe) == straight.losses
    assert not list(recipe.run_dir.glob(".*.tmp"))


def killed_when(recipe: PretrainingRecipe, due: Callable[[], bool]) -> None:
    """Kill a process with a signal nobody can catch.

    Forked from one that has imported everything and done nothing: torch refuses to train in a fork of a process
    in which other tests have started its threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=run, args=(recipe,))
    process.start()
    while not due() and process.is_alive():
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode == -9, "it ended before it was killed"


def test_weights_say_what_they_come_from(straight: Straight):
    recipe = straight.recipe
    exported = weights_file.read(recipe.out)
    expected = {"method": recipe.method.name, "arch": recipe.method.arch, "recipe": recipe.name}
    expected |= {"image_size": recipe.method.image_size, "samples_seen": 80, "batch_size": 8}
    expected["images_at_once"] = 8 if recipe.method.name == "mae" else 4  # of a micro-batch; MAE's loss is a mean
    assert expected.items() <= exported.metadata.items()
    assert exported.mean == (0.7, 0.6, 0.65)


def test_a_checkpoint_of_another_recipe_is_refused(straight: Straight, tmp_path: Path):
    other = next(name for name in tiny.NAMES if name != straight.recipe.name)
    recipe = tiny.recipe(other, straight.recipe.shards, tmp_path, run_dir=straight.recipe.run_dir)
    with pytest.raises(Exception, match=rf"was started with name={straight.recipe.name}, not {other}"):
        run(recipe)


def test_checkpointed_activations_change_no_gradient(straight: Straight, tmp_path: Path):
    """Nor does anything else of the state but the running statistics, which see such a pass twice."""
    recipe = elsewhere(straight, tmp_path, checkpoint_activations=True)
    run(recipe)
    assert losses_of(recipe) == pytest.approx(straight.losses, rel=1e-4)
