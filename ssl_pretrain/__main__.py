"""`python -m ssl_pretrain [RECIPE]`: shards in, backbone weights out."""

from typing import TYPE_CHECKING

from shared.cli import parse_beside, run
from shared.signals import StopSignal

if TYPE_CHECKING:
    from shared.training.distributed import World

DESCRIPTION = """Self-supervised pre-training of a backbone on shards of patches.

Reads the folder that `python -m patch_extraction` made, writes NAME.pth for `python -m finetune --init`.
The same command goes on where the last attempt was interrupted. Several GPUs: torchrun --nproc-per-node 8
-m ssl_pretrain, sbatch slurm/mae_vitb.sh, or --launcher slurm."""


def main() -> int:
    """Train; returns the exit code (0 finished, 2 refused, 3 failed as a job, 85 stopped at a checkpoint)."""
    stop = StopSignal()  # before torch, whose import takes seconds in which a warning would kill the process
    from shared.training.rank_errors import on_all_ranks, together
    from ssl_pretrain.launch import LAUNCH, train_in_slurm
    from ssl_pretrain.recipes import RECIPES
    from ssl_pretrain.run.batch_plan import require_images_at_once
    from ssl_pretrain.train import train

    recipe, launch = parse_beside(RECIPES, "mae_vitb", "python -m ssl_pretrain", DESCRIPTION, LAUNCH)
    if launch.launcher == "slurm":
        return train_in_slurm(recipe, launch)

    def train_here(world: "World") -> int:
        with together(world):
            require_images_at_once(recipe, world.size)
        return train(recipe, world, stop)

    return on_all_ranks(train_here)


if __name__ == "__main__":
    run(main)
