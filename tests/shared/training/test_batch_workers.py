"""Loader processes beside a small /dev/shm and unresponsive storage, with real processes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from shared.errors import UserError
from shared.training import batch_workers
from shared.training.batch_workers import BatchWorkers
from tests.conftest import ENVIRONMENT

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


class Numbered(Dataset[torch.Tensor]):
    """Sample n is filled with n."""

    def __init__(self, bytes_each: int, seconds: float = 0) -> None:
        self.bytes_each, self.seconds = bytes_each, seconds

    def __getitem__(self, position: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.full((self.bytes_each,), position, dtype=torch.uint8)

    def __len__(self) -> int:
        return 8


PROGRAM = """
import sys, torch
from pathlib import Path
from shared.training import batch_workers
from tests.shared.training.test_batch_workers import CPU, Numbered
if "unchecked" in sys.argv:
    batch_workers._fit_in_shared_memory = lambda needed, remedy: True
size = 1_000_000
with batch_workers.BatchWorkers(Numbered(size), 2, CPU, size, "--workers", batch_size=None) as batches:
    print([int(batch[0]) for batch in batches if batch.shape == (size,)])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small /dev/shm")
@pytest.mark.parametrize("word", ["checked", "unchecked"])
def test_a_small_shared_memory_is_survived_and_an_exhausted_one_ends_the_command(word: str):
    mount = 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "--mount", "bash", "-c", mount, "bash", sys.executable, "-c", PROGRAM, word]
    done = subprocess.run(
        words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mount namespaces here")
    if word == "checked":
        assert "note: /dev/shm has 2 MB free" in done.stdout
        assert done.stdout.endswith("[0, 1, 2, 3, 4, 5, 6, 7]\n") and not done.returncode
    else:
        assert "UserError" in done.stderr and "--workers" in done.stderr and "/dev/shm" in done.stderr


def test_processes_that_deliver_nothing_end_the_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_workers, "PATIENCE_S", 1)
    with (
        pytest.raises(UserError, match="--workers"),
        BatchWorkers(Numbered(1, seconds=60), 1, CPU, 1, "--workers", batch_size=None) as batches,
    ):
        next(batches)
    assert not any(process.is_alive() for process in batches.processes)


def test_all_stages_load_batches_this_way():
    product = [path for stage in ("shared", "ssl_pretrain", "finetune") for path in (ROOT / stage).rglob("*.py")]
    users = [path.stem for path in product if re.search(r"\bDataLoader\(", path.read_text(encoding="utf-8"))]
    assert users == ["batch_workers"]
