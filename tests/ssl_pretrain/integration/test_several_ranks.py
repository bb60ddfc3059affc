"""Two ranks, as two processes: they train as one, see the same, and fail together with one sentence."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from shared.signals import StopSignal
from shared.training.distributed import World
from ssl_pretrain.train import train
from tests.conftest import ENVIRONMENT, free_port
from tests.ssl_pretrain import stub
from tests.ssl_pretrain.conftest import tissue, write_shards

AS_A_RANK = """
import os, sys, torch
from pathlib import Path
from shared.training import distributed
from shared.cli import run
from shared.signals import StopSignal
from ssl_pretrain.__main__ import main
from shared.training.rank_errors import AllRanksError
from ssl_pretrain.train import train
from tests.ssl_pretrain import stub

def refused(**fields):
    try:
        train(stub.changed(recipe, **fields), world, StopSignal())
    except AllRanksError as error:
        return str(error)

world = distributed.start()
alone = lambda usual, other: other if world.rank == 1 else usual
here, elsewhere = Path("run"), Path("elsewhere")
recipe = stub.recipe(Path("shards"), Path(), micro_batch=10)
codes = [train(stub.changed(recipe, max_steps=4), world, StopSignal())]
method = recipe.method.built[-1]
sentences = {
    "shards": refused(shards=alone(recipe.shards, Path("absent"))),
    "other shards": refused(shards=alone(recipe.shards, Path("others")), run_dir=Path("new")),
    "checkpoints": refused(run_dir=alone(here, elsewhere)),
    "batch": refused(batch_size=41),
}
stop = StopSignal()
stop.received = alone(None, "SIGTERM")
codes.append(train(stub.changed(recipe, run_dir=Path("new")), world, stop))
torch.save({"weights": method.state_dict(), "draws": method.draws, "codes": codes, "sentences": sentences},
           f"rank-{world.rank}.pt")
distributed.stop()
os.environ["MASTER_PORT"] = sys.argv[1]
sys.argv = ["ssl_pretrain", "--shards", "absent"]
run(main)
"""


class Outcome(NamedTuple):
    folder: Path
    codes: list[int]
    errors: list[str]
    results: list[dict]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Return what two ranks did, with two accumulated passes each."""
    folder = tmp_path_factory.mktemp("ranks")
    write_shards(folder / "shards", [24, 16], tissue)
    write_shards(folder / "others", [16, 24], tissue)
    ports = free_port(), free_port()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AS_A_RANK, str(ports[1])],
            cwd=folder,
            env={**ENVIRONMENT, **address, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    results = [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    return Outcome(folder, [process.returncode for process in processes], errors, results)


def test_both_end_with_the_weights_of_one_rank_with_the_whole_batch(
    outcome: Outcome, world: World, tmp_path: Path
):
    alone = stub.recipe(outcome.folder / "shards", tmp_path, max_steps=4)
    assert train(alone, world, StopSignal()) == 0
    method = alone.method.built[-1]
    for result in outcome.results:
        assert result["codes"][0] == 0
        for name, value in method.state_dict().items():
            torch.testing.assert_close(result["weights"][name], value, rtol=0, atol=1e-6)
    first, second = (result["weights"]["linear.weight"] for result in outcome.results)
    assert torch.equal(first, second)


def test_each_rank_step_and_pass_draws_its_own_random_numbers(outcome: Outcome):
    draws = [result["draws"] for result in outcome.results]
    assert [len(own) for own in draws] == [8, 8]  # 4 steps of 2 passes
    assert len({*draws[0], *draws[1]}) == 16


def test_what_fails_on_one_fails_on_all_with_its_sentence(outcome: Outcome):
    for result in outcome.results:
        sentences = result["sentences"]
        assert sentences["shards"].startswith("there is no folder of shards absent")
        assert sentences["other shards"].startswith("the ranks see different shards in ")
        assert "the ranks see different checkpoints in " in sentences["checkpoints"]
        assert "must lie on a file system that all nodes share" in sentences["checkpoints"]
        assert sentences["batch"].startswith("a batch of 41 cannot be shared evenly by 2 ranks")


def test_the_sentence_is_printed_once_and_nobody_is_left_waiting(outcome: Outcome):
    assert outcome.codes == [2, 2]
    assert outcome.errors[0].splitlines()[-1].startswith("error: there is no folder of shards absent")
    assert "error: " not in outcome.errors[1] and not any("Traceback" in error for error in outcome.errors)


def test_told_to_stop_on_one_rank_all_stop(outcome: Outcome):
    assert [result["codes"][1] for result in outcome.results] == [85, 85]
    assert not (outcome.folder / "new").exists()


def test_another_number_of_ranks_goes_on_with_a_new_epoch(
    outcome: Outcome, world: World, capsys: pytest.CaptureFixture[str]
):
    there = stub.recipe(outcome.folder / "shards", outcome.folder)
    assert train(there, world, StopSignal()) == 0
    assert "goes on after step 4, with a new epoch because its division has changed" in capsys.readouterr().out
