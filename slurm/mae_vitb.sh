#!/bin/bash
# MAE pre-training of a ViT-B/16 on the shards in ./shards; ends with ./mae.pth.
#
#   sbatch slurm/mae_vitb.sh                                   from the root of the checkout
#   sbatch --account=LAB --time=12:00:00 slurm/mae_vitb.sh     another account, another limit
#   sbatch --nodes=2 slurm/mae_vitb.sh                         more nodes: fewer accumulated passes, same batch
#   sbatch --gpus-per-node=4 --ntasks-per-node=4 slurm/mae_vitb.sh --micro-batch 128
#   RECIPE=mae_vitb_ihc sbatch slurm/mae_vitb.sh               its variant for immunohistochemistry
#
# SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_PARTITION ... do the same from the environment. What follows the
# script's name goes to `python -m ssl_pretrain mae_vitb`. One task a GPU.
#
# Published recipe (He et al. 2022, PRETRAIN.md): a global batch of 4096, there 64 images on each of 64 GPUs;
# here 8 GPUs x 256 images x 2 accumulated passes, which is the same to MAE. 200 ImageNet epochs = 62,557 steps,
# an estimated 4.6 hours on 8 A100; --nodes=8 has the published division.
#SBATCH --job-name=mae_vitb
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

. slurm/launch.sh || { echo "error: submit this from the root of the checkout" >&2; exit 2; }
one_task_a_gpu
launch ssl_pretrain "${RECIPE:-mae_vitb}" "$@"
