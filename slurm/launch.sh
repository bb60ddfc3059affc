# Sourced by the batch scripts beside it: `launch` runs a stage on every task of the job. What it expects: see
# mae_vitb.sh.
set -uo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a batch job, start it with: sbatch slurm/${0##*/} (without Slurm: \
python -m ssl_pretrain, python -m finetune, python -m patch_extraction)"

[ -n "${PYTHON:-}" ] || PYTHON=$(command -v .venv/bin/python || echo python)
command -v "$PYTHON" >/dev/null || refuse "there is no $PYTHON here; make setup makes .venv, or set PYTHON"

# This job. One element of an array has the array's own number, by which Slurm would take all of them.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# One task a GPU is what the stages expect. An empty CUDA_VISIBLE_DEVICES selects the CPU.
one_task_a_gpu() {
  local gpus=${SLURM_GPUS_ON_NODE:-0} tasks=${SLURM_NTASKS_PER_NODE:-1}
  if [ "$gpus" = 0 ] && [ -n "${CUDA_VISIBLE_DEVICES-unset}" ]; then
    refuse "this job was given no GPUs; ask for them with --gpus-per-node and as many --ntasks-per-node"
  elif [ "$gpus" != 0 ] && [ "$gpus" != "$tasks" ]; then
    refuse "this job has $tasks tasks and $gpus GPUs a node; give --ntasks-per-node and --gpus-per-node alike"
  fi
}

# launch MODULE [WORD...]: `python -m MODULE WORD...` on every task, until it ends or stops at a checkpoint, after which
# `shared.jobs.in_job` requeues the job. Does not return: the job's exit code is the stage's.
launch() {
  # The tasks need all of the environment, also in a job of sbatch --export=NONE or --export=RECIPE=...
  export SLURM_EXPORT_ENV=ALL
  # Submitted from within another job, this has the other's as well, and srun refuses two of them. Without any of
  # them it takes what the job has.
  unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE
  # srun no longer takes this over from sbatch by itself (since Slurm 22.05).
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

  trap : TERM # this shell must outlive the run, which ends by itself
  # One rank that fails ends all; so does one that ends while others hang, after a while.
  srun --kill-on-bad-exit=1 --wait="${GRACE:-120}" --cpu-bind=cores "$PYTHON" -m shared.jobs.in_job "$@"
  exit
}
