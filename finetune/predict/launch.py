"""Prediction as an array of Slurm jobs, each with a part of the slides, that the command itself submits."""

from pathlib import Path

from shared.jobs.launcher import PartsLaunch, part_tasks, typed_command, wait_in_slurm
from shared.jobs.slurm import Slurm
from shared.jobs.slurm import check as check_slurm

LAUNCH = PartsLaunch(slurm=Slurm(gpus=1, cpus=8))


def predict_in_slurm(slides: int, out: Path, launch: PartsLaunch) -> int:
    """Submit the parts and wait; returns the exit code of the process.

    Raises:
        UserError: an option is out of range, or Slurm refuses the jobs.
    """
    check_slurm(launch.slurm)
    folder = out / "jobs"
    tasks = part_tasks(typed_command("finetune.predict"), folder, launch.parts, slides)
    return wait_in_slurm(tasks, folder, launch.slurm)
