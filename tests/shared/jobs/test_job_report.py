"""Of a job that failed, its table says why, whichever rank it was."""

from pathlib import Path

import pytest

from shared.jobs.job_report import Job, log_of_rank, report
from shared.jobs.tasks import Task

TRACE = "Traceback (most recent call last):\n  File 'a.py'\n"
LEFT = "error: another rank has ended and reports the reason; this one cannot continue without it\n"


@pytest.mark.parametrize(
    ("first", "second", "rank", "line"),
    [
        (
            "step 7\n",
            TRACE + "torch.OutOfMemoryError: CUDA out\n",
            1,
            "torch.OutOfMemoryError: CUDA",
        ),
        (
            "step 7\n",
            "[rank1]: RuntimeError: x\n[W1] destroy_process_group was not\n",
            1,
            "RuntimeError: x",
        ),
        (LEFT, "error: no room\n", 1, "error: no room"),
        ("error: no recipe\n", LEFT, 0, "error: no recipe"),
        ("error: of the attempt before\n$ python -m x\nstep 9\n", "step 9\n", 0, "step 9"),
        ("", "", 0, "$ python -m x"),
    ],
)
def test_the_reason_is_found(tmp_path: Path, first: str, second: str, rank: int, line: str):
    task = Task("run", ("python", "-m", "x"), tmp_path / "run.log")
    for number, text in enumerate((first, second)):
        log_of_rank(task, number).write_text(f"$ {task}\n{text}")
    said = report([Job(task, "7")], {"7": "FAILED"}, tmp_path / "jobs").splitlines()
    assert said[-2].split() == ["run", "7", "FAILED", str(log_of_rank(task, rank))]
    assert said[-1].startswith(f"  {line}")


def test_a_job_that_ended_well_has_no_line(tmp_path: Path):
    task = Task("run", ("python", "-m", "x"), tmp_path / "run.log")
    task.log.write_text("$ python -m x\nerror: which was overcome\n")
    said = report([Job(task, "7")], {"7": "COMPLETED"}, tmp_path)
    assert said.endswith(f"COMPLETED  {task.log}")


def test_what_slurm_says_if_the_task_never_began(tmp_path: Path):
    task = Task("run", ("python", "-m", "x"), tmp_path / "run.log")
    (tmp_path / "7_0_log.err").write_text("srun: error: no such node\n")
    assert report([Job(task, "7")], {"7": "NODE_FAIL"}, tmp_path).endswith("  srun: error: no such node")
