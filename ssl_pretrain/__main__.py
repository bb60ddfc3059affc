"""`python -m ssl_pretrain [RECIPE]`: shards in, backbone weights out."""

from shared.command_line import parse, run
from shared.stop_signal import StopSignal

DESCRIPTION = """Self-supervised pre-training of a backbone on shards of patches.

Reads the folder that `python -m patch_extraction` made, writes NAME.pth for `python -m finetune --init`.
The same command goes on where the last attempt was interrupted. Several GPUs: torchrun --nproc-per-node 8
-m ssl_pretrain, or sbatch slurm/mae_vitb.sh."""


def main() -> int:
    """Train; returns the exit code (0 finished, 2 refused, 85 stopped at a checkpoint by a signal)."""
    stop = StopSignal()  # before torch, whose import takes seconds in which a warning would kill the process
    from shared.ranks import on_all_ranks
    from ssl_pretrain.recipes import RECIPES
    from ssl_pretrain.train import train

    recipe = parse(RECIPES, "mae_vitb", "python -m ssl_pretrain", DESCRIPTION)
    return on_all_ranks(lambda world: train(recipe, world, stop))


if __name__ == "__main__":
    run(main)
