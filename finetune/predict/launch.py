"""A prediction as an array of Slurm jobs that the command itself submits: parts of the slides."""

from dataclasses import dataclass
from pathlib import Path

from shared.command_line import check_range
from shared.launch import Launch, typed_command, wait_in_slurm
from shared.launcher import Task
from shared.slurm_jobs import Slurm
from shared.slurm_jobs import check as check_slurm


@dataclass(frozen=True, kw_only=True)
class PredictionLaunch(Launch):
    """Where a prediction runs."""

    slurm: Slurm = Slurm(gpus=1, cpus=8)
    """What each job asks for."""
    parts: int = 16
    """With `launcher slurm`: jobs that the slides are divided among, at most."""


def predict_in_slurm(slides: int, out: Path, launch: PredictionLaunch) -> int:
    """Submit the parts and wait; returns the exit code of the process.

    Raises:
        UserError: an option is out of range, or Slurm refuses the jobs.
    """
    check_slurm(launch.slurm)
    check_range("parts", launch.parts, 1, 999_999)
    count = min(launch.parts, slides)
    command, folder = typed_command("finetune.predict"), out / "jobs"
    digits = len(str(count))
    tasks = [
        Task(
            f"part-{number:0{digits}}",
            (*command, "--part", f"{number}/{count}"),
            folder / f"part-{number}.log",
        )
        for number in range(1, count + 1)
    ]
    return wait_in_slurm(tasks, folder, launch.slurm)
