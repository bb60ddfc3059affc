"""`--launcher slurm`: a harvest as an array of Slurm jobs, one per part, and a job that packs."""

from patch_extraction.config import HarvestConfig
from patch_extraction.slide_store.file_names import JOBS
from shared.errors import UserError
from shared.jobs.launcher import PartsLaunch, part_tasks, typed_command, wait_in_slurm
from shared.jobs.slurm import Slurm
from shared.jobs.slurm import check as check_slurm
from shared.jobs.tasks import Task

LAUNCH = PartsLaunch(slurm=Slurm(gpus=0, cpus=16))


def harvest_in_slurm(slides: int, config: HarvestConfig, launch: PartsLaunch) -> int:
    """Submit the parts and the job that packs afterwards, and wait; return the exit code of the process.

    Raises:
        UserError: an option is out of range or unsuitable, or Slurm refuses the jobs.
    """
    if config.part is not None:
        raise UserError("--launcher slurm divides the slides by itself; leave out --part, or give --parts N")
    check_slurm(launch.slurm)
    command, folder = _typed(config, launch.slurm.cpus), config.out / JOBS
    parts = part_tasks(command, folder, launch.parts, slides)
    pack = Task("pack", (*command, "--pack"), folder / "pack.log")
    return wait_in_slurm([] if config.pack else parts, folder, launch.slurm, then=pack)


def _typed(config: HarvestConfig, cpus: int) -> tuple[str, ...]:
    """Return the typed command, with workers for the cores of a job instead of those of its node."""
    command = typed_command("patch_extraction")
    return command if config.workers else (*command, "--workers", str(cpus))
