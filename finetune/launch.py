"""Submit fine-tuning as a Slurm job, after all checks that need no GPU."""

from finetune.datasets import load_data
from finetune.recipes import Recipe, check, comparable_settings
from finetune.train import FREE_ON_RESUME, TUNABLE_ON_RESUME, refuse_uneven
from shared.jobs.launcher import Launch, wait_for_run
from shared.jobs.slurm import Slurm
from shared.jobs.slurm import check as check_slurm
from shared.training import checkpoint

# Like the header of slurm/finetune.sh.
LAUNCH = Launch(slurm=Slurm(gpus=1, cpus=8))


def train_in_slurm(recipe: Recipe, launch: Launch) -> int:
    """Submit the run and wait for it; returns the exit code of the process.

    Raises:
        UserError: the recipe, the data or the run folder do not fit, or Slurm refuses the job.
    """
    check_slurm(launch.slurm)
    check(recipe)
    free = (*FREE_ON_RESUME, *TUNABLE_ON_RESUME)
    checkpoint.refuse_other_settings(recipe.run_dir, comparable_settings(recipe), free)
    refuse_uneven(recipe, launch.slurm.ranks)
    load_data(recipe.source)
    return wait_for_run("finetune", recipe.name, recipe.run_dir, launch.slurm)
