"""What several ranks say when one of them ends, in real processes."""

import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT, free_port

PROGRAM = """
import sys, torch
from shared.training import distributed
from shared.cli import run
from shared.errors import UserError
from shared.training.rank_errors import on_all_ranks

def train(world):
    network = distributed.replicated(torch.nn.Linear(4, 4), world)
    for step in range(3):
        if (world.rank, step) == (1, 2):
            raise UserError("shard 7 is damaged") if sys.argv[1] == "input" else ZeroDivisionError("a mistake")
        if world.size == 1 and sys.argv[1] == "alone":
            raise RuntimeError("a mistake of ours")
        network(torch.rand(2, 4)).sum().backward()

run(lambda: on_all_ranks(train))
"""


def ends(reason: str, size: int = 2) -> list[tuple[int, str]]:
    """Exit code and errors of every rank."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, reason],
            env={**ENVIRONMENT, **address, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    return [(rank.returncode, said) for rank, said in zip(ranks, errors, strict=True)]


@pytest.mark.parametrize(
    ("reason", "said"), [("input", "error: shard 7 is damaged\n"), ("bug", "ZeroDivisionError: a mistake\n")]
)
def test_the_rank_that_ends_says_why_and_the_other_a_sentence(reason: str, said: str) -> None:
    (left_code, left), (ended_code, ended) = ends(reason)
    assert left == "error: another rank has ended and reports the reason; this one cannot continue without it\n"
    assert left_code == 2
    # Not which code after a bug: the rank leaves with its process group still up, and was seen to end by SIGABRT.
    assert ended_code == 2 if reason == "input" else ended_code != 0
    assert said in ended
    assert ("Traceback" in ended) == (reason == "bug")


def test_other_errors_keep_their_traceback() -> None:
    ((code, said),) = ends("alone", size=1)
    assert code == 1 and "Traceback" in said and said.endswith("RuntimeError: a mistake of ours\n")
