"""Submit pre-training as a Slurm job, after all checks that are possible before queueing."""

import torch

from shared.jobs.launcher import Launch, wait_for_run
from shared.jobs.slurm import Slurm
from shared.jobs.slurm import check as check_slurm
from shared.training.distributed import World
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.run.batch_plan import BatchPlan, require_images_at_once
from ssl_pretrain.run.setup import prepare

# Like the headers in slurm/.
LAUNCH = Launch(slurm=Slurm(nodes=1, gpus=8, cpus=12))


def train_in_slurm(recipe: PretrainingRecipe, launch: Launch) -> int:
    """Submit the run and wait for it; returns the exit code of the process.

    Raises:
        UserError: the recipe, the shards or the run folder do not fit, or Slurm refuses the job.
    """
    check_slurm(launch.slurm)
    require_images_at_once(recipe, launch.slurm.ranks)
    device = torch.device("cuda" if launch.slurm.gpus else "cpu")  # of the job; there need not be one here
    prepare(recipe, World(rank=0, local_rank=0, size=1, device=device))
    BatchPlan.of(recipe, launch.slurm.ranks)
    return wait_for_run("ssl_pretrain", recipe.name, recipe.run_dir, launch.slurm)
