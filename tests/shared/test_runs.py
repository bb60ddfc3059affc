"""A run's folder: continued, not begun anew, by a resumed run."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from shared.command_line import UserError
from shared.runs import Run, git_commit, provenance


@dataclass(frozen=True)
class Config:
    rate: float = 0.1


def test_a_resumed_run_keeps_its_id_and_forgets_later_steps(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Config())
    for step in range(1, 6):
        run.log(step, loss=1 / step)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # what a killed process leaves
    run.close()
    again = Run(tmp_path / "run", Config())
    again.rewind(3)
    again.log(4, loss=0.5)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert run.id == again.id
    assert run.id != Run(tmp_path / "other", Config()).id
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Config(), writes=False)
    run.log(1, loss=1.0)
    run.picture("a", Image.new("RGB", (2, 2)))
    run.rewind(0)
    assert not (tmp_path / "run").exists()


def test_provenance_names_commit_and_versions() -> None:
    found = provenance()
    assert {"torch", "timm", "numpy", "python"} <= found["versions"].keys()
    assert len(git_commit().removesuffix("-dirty")) == 40 or git_commit() == "unknown"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        Run(tmp_path / "file" / "run", Config())
