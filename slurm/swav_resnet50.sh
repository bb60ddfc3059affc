#!/bin/bash
# SwAV pre-training of a ResNet-50 with 2 + 6 crops on the shards in ./shards; ends with ./swav_resnet50.pth.
#
#   sbatch slurm/swav_resnet50.sh                                 from the root of the checkout
#   sbatch --account=LAB --time=12:00:00 slurm/swav_resnet50.sh   another account, another limit
#   RECIPE=swav_resnet50_ihc sbatch slurm/swav_resnet50.sh        its variant for immunohistochemistry
#
# What follows the script's name goes to `python -m ssl_pretrain swav_resnet50`; more in mae_vitb.sh.
#
# Published recipe (swav_800ep_pretrain.sh): a global batch of 4096, 64 images on each of 64 GPUs, as here: the
# prototypes are shared out among all images that are seen at once. 200 ImageNet epochs = 62,557 steps, an estimated
# 1.4 hours on 64 A100. Fewer than 4096 at once are refused; the published recipe with a batch of 256 and a queue is
# RECIPE=swav_resnet50_256 sbatch --nodes=1 slurm/swav_resnet50.sh, 11 hours on 8 A100.
#SBATCH --job-name=swav_resnet50
#SBATCH --nodes=8
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
launch ssl_pretrain "${RECIPE:-swav_resnet50}" "$@"
