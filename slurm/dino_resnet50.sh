#!/bin/bash
# DINO pre-training of a ResNet-50 with 2 + 8 crops on the shards in ./shards; ends with ./dino_resnet50.pth.
#
#   sbatch slurm/dino_resnet50.sh                                 from the root of the checkout
#   sbatch --account=LAB --time=12:00:00 slurm/dino_resnet50.sh   another account, another limit
#   RECIPE=dino_resnet50_ihc sbatch slurm/dino_resnet50.sh        its variant for immunohistochemistry
#
# What follows the script's name goes to `python -m ssl_pretrain dino_resnet50`; more in mae_vitb.sh.
#
# Published recipe (README of the official code): a global batch of 512, 64 images on each of 8 GPUs, as here.
# 200 ImageNet epochs = 500,456 steps, an estimated 14.6 hours on 8 A100.
#SBATCH --job-name=dino_resnet50
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
launch ssl_pretrain "${RECIPE:-dino_resnet50}" "$@"
