"""Ranks as torchrun and SLURM describe them, in real processes."""

import atexit
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from shared.errors import UserError
from shared.jobs.process_rank import numbering_of_process
from shared.signals import StopSignal
from shared.training import distributed, rank_errors
from tests.conftest import ENVIRONMENT, free_port, signals_kept

PROGRAM = """
import torch
from shared.training import distributed
world = distributed.start()
mean = distributed.mean_over_ranks(torch.tensor(float(world.rank)))
flags = [distributed.any_rank(world.rank == wanted, world.device) for wanted in (1, 7)]
print(world.rank, world.size, world.is_main, mean.item(), flags, flush=True)
distributed.stop()
"""


def launch(*environments: dict[str, str]) -> list[str]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env={**ENVIRONMENT, **each}, stdout=subprocess.PIPE, text=True
        )
        for each in environments
    ]
    return [process.communicate(timeout=120)[0].strip() for process in processes]


def test_one_process_needs_no_group() -> None:
    assert launch({}) == ["0 1 True 0.0 [False, False]"]


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_ranks_meet(launcher: str) -> None:
    port = str(free_port())
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if launcher == "slurm":
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    ranks = [dict(zip(names, (rank, "2", rank), strict=True)) for rank in "01"]
    lines = launch(*({**rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in ranks))
    assert lines == ["0 2 True 0.5 [True, False]", "1 2 False 0.5 [True, False]"]


def test_slurm_tasks_that_do_not_know_each_other_are_refused() -> None:
    lonely = {**ENVIRONMENT, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=lonely, capture_output=True, text=True, check=False)
    assert "UserError: several SLURM tasks were started without MASTER_ADDR" in done.stderr


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        first = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(words, env=ENVIRONMENT | first, capture_output=True, text=True, check=False)
    said = f"UserError: port {port} of 127.0.0.1, where the ranks meet, is in use; set MASTER_PORT to a free one"
    assert said in done.stderr


def test_signals_raise_a_flag_and_nothing_else() -> None:
    with signals_kept():
        stop = StopSignal()
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.received == "SIGUSR2"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"SLURM_PROCID": "0", "MASTER_ADDR": "n1", "SLURM_LOCALID": "0"}, "SLURM_NTASKS is not set"),
    ],
)
def test_incomplete_variables_of_a_launcher_are_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        numbering_of_process(environment)


def test_ranks_without_a_meeting_place_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR"):
        distributed.start()


def test_idle_gpus_are_mentioned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    distributed.start()
    assert "1 of 8 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "named"),
    [(dist.DistBackendError("NCCL error: Duplicate GPU detected : rank 1 and rank 0"), "the same GPU")],
)
def test_two_ranks_on_one_gpu_are_one_sentence(error: Exception, named: str) -> None:
    def train(_world: distributed.World) -> int:
        raise error

    with pytest.raises(UserError, match=named):
        rank_errors.on_all_ranks(train)
    atexit.unregister(rank_errors._leave_at_once)


@pytest.mark.parametrize(
    ("gpus", "local_rank", "device"),
    [(8, 5, "cuda:5"), (4, 3, "cuda:3"), (1, 0, "cuda:0"), (1, 5, "cuda:0"), (4, 4, None), (0, 2, "cpu")],
)
def test_tasks_of_a_node_get_its_gpus(
    gpus: int, local_rank: int, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All visible to each, or one (Slurm's --gpus-per-task, a slice by MIG); more tasks than GPUs are refused."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    if device is None:
        with pytest.raises(UserError, match="one task for each GPU"):
            distributed._device(local_rank)
        return
    assert str(distributed._device(local_rank)) == device
    assert [str(each) for each in chosen] == ([] if device == "cpu" else [device])


def test_nccl_is_given_its_device_and_leaves_the_rest_to_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device the group is set up at once; a failed collective ends the process."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    given: dict[str, object] = {}
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **options: given.update(backend=backend, **options)
    )
    assert distributed.start().device == torch.device("cuda", 3)
    assert given == {"backend": "nccl", "device_id": torch.device("cuda", 3), "timeout": distributed.PATIENCE}
    assert not [name for name in os.environ if name.startswith(("NCCL_", "TORCH_NCCL_"))]
