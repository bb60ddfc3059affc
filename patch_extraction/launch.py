"""A harvest as an array of Slurm jobs that the command itself submits: the parts, and then one job that packs."""

from dataclasses import dataclass

from patch_extraction.config import HarvestConfig
from shared.command_line import UserError, check_range
from shared.launch import Launch, typed_command, wait_in_slurm
from shared.launcher import Task
from shared.slurm_jobs import Slurm
from shared.slurm_jobs import check as check_slurm


@dataclass(frozen=True, kw_only=True)
class HarvestLaunch(Launch):
    """Where a harvest runs."""

    slurm: Slurm = Slurm(gpus=0, cpus=16)
    """What each job asks for."""
    parts: int = 16
    """With `launcher slurm`: jobs that the slides are divided among, at most."""


def harvest_in_slurm(slides: int, config: HarvestConfig, launch: HarvestLaunch) -> int:
    """Submit the parts, and behind them the job that packs, and wait; returns the exit code of the process.

    Raises:
        UserError: an option is out of range or makes no sense here, or Slurm refuses the jobs.
    """
    if config.part is not None:
        raise UserError("--launcher slurm divides the slides by itself; leave out --part, or say --parts N")
    check_slurm(launch.slurm)
    check_range("parts", launch.parts, 1, 999_999)
    count = min(launch.parts, slides)
    command, folder = _typed(config, launch.slurm.cpus), config.out / "jobs"
    digits = len(str(count))
    parts = [
        Task(
            f"part-{number:0{digits}}",
            (*command, "--part", f"{number}/{count}"),
            folder / f"part-{number}.log",
        )
        for number in range(1, 1 if config.pack else count + 1)
    ]
    return wait_in_slurm(parts, folder, launch.slurm, then=Task("pack", (*command, "--pack"), folder / "pack.log"))


def _typed(config: HarvestConfig, cpus: int) -> tuple[str, ...]:
    """The command that was typed; workers for the cores of a job, not for all of its node."""
    command = typed_command("patch_extraction")
    return command if config.workers else (*command, "--workers", str(cpus))
