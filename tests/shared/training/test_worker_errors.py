"""The death of a loader process, and errors inside one, with real processes."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from shared.errors import UserError
from shared.training.worker_errors import explain_worker_death


class Ending(Dataset[torch.Tensor]):
    """Its third sample ends the process that loads it, or fails there."""

    def __init__(self, killed: bool) -> None:
        self.killed = killed

    def __getitem__(self, position: int) -> torch.Tensor:
        if position == 2:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a mistake of ours")
        return torch.zeros(1)

    def __len__(self) -> int:
        return 4


def test_a_killed_process_is_a_sentence_with_what_to_lower() -> None:
    sentence = "a loader process was killed, probably because memory .* ran out; .* lower --workers or --buffer"
    with pytest.raises(UserError, match=sentence), explain_worker_death("--workers or --buffer"):
        list(DataLoader(Ending(killed=True), num_workers=1))


def test_a_signal_that_comes_late_is_the_same_sentence() -> None:
    late = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def raise_late(number: int, frame: object) -> None:
        raise late

    before = signal.signal(signal.SIGALRM, raise_late)
    try:
        with pytest.raises(UserError, match="a loader process was killed"), explain_worker_death("--workers"):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            raise EOFError
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_error_inside_one_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"), explain_worker_death("--workers"):
        list(DataLoader(Ending(killed=False), num_workers=1))
