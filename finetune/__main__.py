"""`python -m finetune [RECIPE] --init WEIGHTS --data DIR`: annotated tiles in, detector.pth out."""

import sys

from shared.cli import parse_beside, run
from shared.signals import StopSignal

DESCRIPTION = """Fine-tune DPA-P2PNet, or a network that it is compared with, on point annotations.

Reads a backbone's weights (python -m ssl_pretrain makes them) and a folder of images with points, writes
detector.pth and a run folder. The same command goes on where the last attempt was interrupted."""


def main() -> int:
    """Train; returns the exit code (0 finished, 2 refused, 3 failed as a job, 85 stopped at a checkpoint)."""
    stop = StopSignal()  # before torch, whose import takes seconds in which a warning would kill the process
    from finetune.folds import train_folds
    from finetune.launch import LAUNCH, train_in_slurm
    from finetune.networks import refuse_other_options
    from finetune.recipes import RECIPES
    from finetune.train import train
    from shared.training.rank_errors import on_all_ranks

    name, *words = sys.argv[1:] or [""]
    if name in RECIPES:
        refuse_other_options(name, RECIPES[name].network, words)
    recipe, launch = parse_beside(RECIPES, "dpa_p2pnet", "python -m finetune", DESCRIPTION, LAUNCH)
    if launch.launcher == "slurm":
        return train_in_slurm(recipe, launch)
    work = train_folds if recipe.folds and not recipe.fold else train
    return on_all_ranks(lambda world: work(recipe, world, stop))


if __name__ == "__main__":
    run(main)
