"""`python -m ssl_pretrain [RECIPE]`: shards in, backbone weights out."""

from shared.cli import run
from shared.signals import StopSignal

DESCRIPTION = """Self-supervised pre-training of a backbone on shards of patches.

Reads the folder that `python -m patch_extraction` made, writes NAME.pth for `python -m finetune --init`.
The same command goes on where the last attempt was interrupted. Several GPUs: torchrun --nproc-per-node 8
-m ssl_pretrain, sbatch slurm/mae_vitb.sh, or --launcher slurm."""


def main() -> int:
    """Train; returns the exit code (0 finished, 2 refused, 3 failed as a job, 85 stopped at a checkpoint)."""
    stop = StopSignal()  # before torch, whose import takes seconds in which a warning would kill the process
    from shared.training.rank_errors import on_all_ranks
    from ssl_pretrain.launch import LAUNCH, ranks_of, train_in_slurm
    from ssl_pretrain.recipe_fallback import parse_asked
    from ssl_pretrain.train import train

    asked, launch = parse_asked("python -m ssl_pretrain", DESCRIPTION, LAUNCH)
    if launch.launcher == "slurm":
        return train_in_slurm(asked.on(ranks_of(launch.slurm)), launch)
    return on_all_ranks(lambda world: train(asked.on_these(world), world, stop))


if __name__ == "__main__":
    run(main)
