"""A run's folder: continued, not begun anew, by a resumed run."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from shared.errors import UserError
from shared.training.run_folder import Run, git_commit, provenance
from tests.conftest import ENVIRONMENT


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
    with pytest.raises(UserError, match="cannot make the folder --run-dir"):
        Run(tmp_path / "file" / "run", Config())


def test_the_folder_of_a_harvest_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(UserError, match="is no run folder, but a harvest's; give another --run-dir"):
        Run(tmp_path, Config())


def test_one_process_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dataclasses import dataclass\n"
        "from shared.training.run_folder import Run\n"
        "@dataclass\nclass C: rate: float = 0.1\n"
        "run = Run(Path(sys.argv[1]), C()); input()"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()  # the settings: it has the lock
        with pytest.raises(UserError, match=r"another process trains in .*run; wait for it"):
            Run(tmp_path / "run", Config())
        other.kill()
    Run(tmp_path / "run", Config()).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no run folder \(it holds index.json\); give another --run-dir"):
        Run(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
