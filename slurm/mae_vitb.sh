#!/bin/bash
# MAE pre-training of a ViT-B/16 on the shards in ./shards; ends with ./mae.pth.
#
#   sbatch slurm/mae_vitb.sh                                   from the root of the checkout
#   sbatch --account=LAB --time=12:00:00 slurm/mae_vitb.sh     another account, another limit
#   sbatch --nodes=2 slurm/mae_vitb.sh                         more nodes: fewer accumulated passes, same batch
#   sbatch --gpus-per-node=4 --ntasks-per-node=4 slurm/mae_vitb.sh --micro-batch 128
#
# SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_PARTITION ... do the same from the environment. What follows the
# script's name goes to `python -m ssl_pretrain mae_vitb`. One task a GPU.
#
# Published recipe (He et al. 2022, PRETRAIN.md): a global batch of 4096, there 64 images on each of 64 GPUs;
# here 8 GPUs x 256 images x 2 accumulated passes. 200 ImageNet epochs = 62,557 steps, an estimated 4.5 hours
# on 8 A100.
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

set -uo pipefail
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python

# Where the ranks meet: the first node. The port differs between jobs that share a node, and lies below those
# that Linux gives to outgoing connections.
MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
# srun no longer takes this over from sbatch by itself (since Slurm 22.05).
SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Made by a run that stopped at a checkpoint because it was told to; a run that fails leaves none.
REQUEUE_MARKER=$PWD/.requeue-$SLURM_JOB_ID
export MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK REQUEUE_MARKER
rm -f "$REQUEUE_MARKER"

trap : TERM # this shell must outlive the run, which ends by itself
srun --kill-on-bad-exit=1 --cpu-bind=cores "$PYTHON" -m ssl_pretrain mae_vitb "$@" &
run=$!
code=1
# A signal ends `wait` with 128 and more although the run goes on; 127 means that its end was seen already.
while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done
wait "$run" 2>/dev/null
last=$?
[ "$last" -ne 127 ] && code=$last

# Prints the job's state; the controller may be too busy for one question.
state() {
  local try
  for try in 1 2 3; do
    squeue -h -j "$SLURM_JOB_ID" -o %T && return
    [ "$try" -lt 3 ] && sleep 5
  done
}

# Warned of the time limit or of preemption: queue the job again, it goes on from its checkpoint. Only if it is
# still running: a cancelled job must stay cancelled, a preempted one is requeued by Slurm itself.
if [ -e "$REQUEUE_MARKER" ] && [ "$(state)" = RUNNING ]; then
  rm "$REQUEUE_MARKER"
  scontrol requeue "$SLURM_JOB_ID" && { sleep 60 & wait; } # be ended by the requeue, do not race it with a code
fi
rm -f "$REQUEUE_MARKER"
exit "$code"
