#!/bin/bash
# DINO pre-training of a ViT-B/16 with 2 + 8 crops on the shards in ./shards; ends with ./dino_vitb.pth.
#
#   sbatch slurm/dino_vitb.sh                                 from the root of the checkout
#   sbatch --account=LAB --time=12:00:00 slurm/dino_vitb.sh   another account, another limit
#   RECIPE=dino_vitb_ihc sbatch slurm/dino_vitb.sh            its variant for immunohistochemistry
#
# What follows the script's name goes to `python -m ssl_pretrain dino_vitb`; more in mae_vitb.sh.
#
# Published recipe (README of the official code, for ViTs): a global batch of 1024, 64 images on each of 16 GPUs, as
# here. 200 ImageNet epochs = 250,228 steps, an estimated 17.3 hours on 16 A100.
#SBATCH --job-name=dino_vitb
#SBATCH --nodes=2
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
launch ssl_pretrain "${RECIPE:-dino_vitb}" "$@"
