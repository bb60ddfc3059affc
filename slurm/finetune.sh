#!/bin/bash
# Fine-tuning of DPA-P2PNet on the annotated tiles in ./data, from ./mae.pth; ends with ./detector.pth.
#
#   sbatch slurm/finetune.sh                                            from the root of the checkout
#   sbatch slurm/finetune.sh --data CoNSeP --init moco_v2_resnet50.pth  other tiles, other weights
#   sbatch --account=LAB --time=2:00:00 slurm/finetune.sh               another account, another limit
#
# What follows the script's name goes to `python -m finetune dpa_p2pnet`; more in mae_vitb.sh.
#
# The default recipe: a global batch of 4 crops on 1 GPU, as here, 12,000 crops in all.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

. slurm/launch.sh || { echo "error: submit this from the root of the checkout" >&2; exit 2; }
one_task_a_gpu
launch finetune "${RECIPE:-dpa_p2pnet}" --init mae.pth "$@"
