# Sourced by the batch scripts beside it: `launch` runs a stage on every task of the job, passes on the scheduler's
# warnings and queues the job again where that is right. What it expects: see mae_vitb.sh.
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

# launch MODULE [WORD...]: `python -m MODULE WORD...` on every task, until it ends or stops at a
# checkpoint. Does not return: the job's exit code is the stage's.
launch() {
  # The ranks meet on the first node. The port differs between jobs that share a node, and is below those
  # that Linux gives to outgoing connections. What torchrun left in the user's shell is not of this job.
  unset RANK WORLD_SIZE LOCAL_RANK
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_ADDR
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
  # The tasks need all of this, also in a job of sbatch --export=NONE or --export=RECIPE=...
  export SLURM_EXPORT_ENV=ALL
  # Submitted from within another job, this has the other's as well, and srun refuses two of them. Without any of
  # them it takes what the job has.
  unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE
  # srun no longer takes this over from sbatch by itself (since Slurm 22.05).
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  # Written by a run that a signal stopped at a checkpoint, and only then; it holds the step. A file for
  # each attempt, so that none is taken for another's.
  export REQUEUE_MARKER=$PWD/.requeue-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
  rm -f "$PWD/.requeue-$SLURM_JOB_ID"-*

  trap : TERM # this shell must outlive the run, which ends by itself
  # One rank that fails ends all; so does one that ends while others hang, after a while.
  srun --kill-on-bad-exit=1 --wait="${GRACE:-120}" --cpu-bind=cores "$PYTHON" -m "$@" &
  run=$!
  end_after_checkpoint &
  watch=$!
  wait_for "$run"
  code=$?
  kill "$watch" 2>/dev/null

  [ -e "$REQUEUE_MARKER" ] && queue_again
  # Only here if it is not queued again.
  rm -f "$REQUEUE_MARKER" "$(attempts)"
  exit "$code"
}

# Waits for a child and returns its code. A signal ends `wait` with 128 and more although the child goes on; 127
# means that its end was seen already.
wait_for() {
  local code=1 last
  while kill -0 "$1" 2>/dev/null; do wait "$1"; code=$?; done
  wait "$1" 2>/dev/null
  last=$?
  [ "$last" -ne 127 ] && code=$last
  return "$code"
}

# The checkpoint is written, and all ranks should be gone within seconds; one that hangs on its way out is killed.
end_after_checkpoint() {
  until [ -e "$REQUEUE_MARKER" ]; do sleep 2; done
  sleep "${GRACE:-120}"
  echo "the run hangs although its checkpoint is written; ending it" >&2
  scancel --signal=KILL "$JOB.0"
}

# Queues the job again, to go on from its checkpoint. Only if it is still running: a cancelled job must stay
# cancelled, a preempted one is requeued by Slurm itself. And not for ever: a run that stops three times at the
# same place gets nowhere in the time it has.
queue_again() {
  local place
  place=$(cat "$REQUEUE_MARKER")
  echo "$place" >>"$(attempts)"
  if [ -n "$place" ] && [ "$(tail -n 3 "$(attempts)" | grep -cxF "$place")" = 3 ]; then
    echo "error: three attempts stopped $place, so the job is not queued again; give it more --time" >&2
    return
  fi
  [ "$(state)" = RUNNING ] || return
  rm "$REQUEUE_MARKER"
  scontrol requeue "$JOB" || return
  sleep 60 & wait # be ended by the requeue, do not race it with a code
  exit 0
}

attempts() { echo "$PWD/.attempts-$SLURM_JOB_ID"; }

# Prints the job's state; the controller may be too busy for one question.
state() {
  local try
  for try in 1 2 3; do
    squeue -h -j "$JOB" -o %T && return
    [ "$try" -lt 3 ] && sleep 5
  done
}
