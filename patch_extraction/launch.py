"""A harvest as an array of Slurm jobs that the command itself submits: the parts, and then one job that packs."""

from patch_extraction.config import HarvestConfig
from shared.errors import UserError
from shared.jobs.launch import PartsLaunch, part_tasks, typed_command, wait_in_slurm
from shared.jobs.slurm import Slurm
from shared.jobs.slurm import check as check_slurm
from shared.jobs.tasks import Task

LAUNCH = PartsLaunch(slurm=Slurm(gpus=0, cpus=16))


def harvest_in_slurm(slides: int, config: HarvestConfig, launch: PartsLaunch) -> int:
    """Submit the parts, and behind them the job that packs, and wait; returns the exit code of the process.

    Raises:
        UserError: an option is out of range or makes no sense here, or Slurm refuses the jobs.
    """
    if config.part is not None:
        raise UserError("--launcher slurm divides the slides by itself; leave out --part, or say --parts N")
    check_slurm(launch.slurm)
    command, folder = _typed(config, launch.slurm.cpus), config.out / "jobs"
    parts = part_tasks(command, folder, launch.parts, slides)
    pack = Task("pack", (*command, "--pack"), folder / "pack.log")
    return wait_in_slurm([] if config.pack else parts, folder, launch.slurm, then=pack)


def _typed(config: HarvestConfig, cpus: int) -> tuple[str, ...]:
    """The command that was typed; workers for the cores of a job, not for all of its node."""
    command = typed_command("patch_extraction")
    return command if config.workers else (*command, "--workers", str(cpus))
