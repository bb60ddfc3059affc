"""The check of a machine, on machines that lack something."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ENVIRONMENT, Command


def findings(command: Command, *words: object, **env: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = command("shared.doctor", *words, "--json", **env)
    assert not done.stderr, done.stderr
    return done.returncode, {each["name"]: each for each in json.loads(done.stdout)}


def test_this_machine_can_run_the_stages(command: Command, tmp_path: Path) -> None:
    code, found = findings(command, tmp_path)
    assert code == 0, found
    assert {"Python", "packages", "OpenSlide", "weights", "output", "locks"} <= found.keys()
    assert {each["state"] for each in found.values()} <= {"ok", "note"}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_missing(command: Command) -> None:
    code, found = findings(command, "/proc")
    assert code == 1
    assert found["output"]["state"] == "missing" and found["output"]["remedy"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine whose torch sees no GPU")
def test_a_gpu_that_torch_cannot_use_is_missing(command: Command, tmp_path: Path) -> None:
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 470.57.02'\n")
    tool.chmod(0o755)
    code, found = findings(command, tmp_path, PATH=f"{tool.parent}:{ENVIRONMENT['PATH']}")
    assert code == 1
    assert "470.57.02" in found["GPU"]["found"] and "driver" in found["GPU"]["remedy"]


def test_no_folder_is_wrong_input(command: Command, tmp_path: Path) -> None:
    done = command("shared.doctor", tmp_path / "none")
    assert done.returncode == 2 and "none" in done.stderr
