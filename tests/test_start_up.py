"""Commands that compute nothing with torch start without it, whose import takes seconds."""

import resource
from pathlib import Path

import pytest

from shared.samples.sample_slides import write_tiles
from tests.conftest import REPOSITORY, Command

COMMANDS = {
    "finetune.datasets": ("summary", "tiles"),
    "patch_extraction.count_check": ("--help",),
    "shared.doctor": ("--help",),
    "shared.samples.sample_slides": ("--help",),
}


@pytest.mark.parametrize("module", COMMANDS)
def test_it_starts_within_three_seconds_and_without_torch(module: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('raise RuntimeError("torch is not for this")\n')
    if module == "finetune.datasets":
        write_tiles(tmp_path / "tiles", tiles=(1, 1, 1))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(module, *COMMANDS[module], PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
