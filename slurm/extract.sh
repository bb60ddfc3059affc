#!/bin/bash
# Harvest of the slides in ./slides by an array of tasks, each its part; then one job packs ./shards.
#
#   sbatch slurm/extract.sh                                     from the root of the checkout
#   sbatch slurm/extract.sh --wsi-dir /data/tcga --out /scratch/shards
#   sbatch --array=1-64%16 --account=LAB slurm/extract.sh       64 parts, 16 at a time, another account
#
# What follows the script's name goes to `python -m patch_extraction`. Submitted again, it goes on where tasks were
# killed: slides that are done are skipped. The array may have any size; its tasks divide the slides again.
#
# Nothing of this is published; 16 parts of 16 cores harvest some thousand slides in a night.
#SBATCH --job-name=extract
#SBATCH --array=1-16
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

. slurm/launch.sh || { echo "error: submit this from the root of the checkout" >&2; exit 2; }
harvest=(patch_extraction --wsi-dir slides --workers "$SLURM_CPUS_PER_TASK" "$@")

[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || refuse "this is an array of tasks; give it --array=1-N"
# An array of element 0 alone, which the first task submits to run when the others have ended, packs.
[ "$SLURM_ARRAY_TASK_MAX" = 0 ] && launch "${harvest[@]}" --pack

# A task does not know the other elements of its array, only their number, the first and the last.
span=$((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN))
[ $((span / SLURM_ARRAY_TASK_STEP + 1)) = "$SLURM_ARRAY_TASK_COUNT" ] || refuse "the slides cannot be divided \
among the elements of a list with gaps; give --array=1-N, also to redo some: slides that are done are skipped"

if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ -z "${SLURM_RESTART_COUNT:-}" ]; then
  sbatch --job-name=pack --array=0 --dependency="afterany:$SLURM_ARRAY_JOB_ID" --cpus-per-task=2 \
    --time="$(squeue -h -j "$JOB" -o %l)" --partition="$SLURM_JOB_PARTITION" \
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} \
    slurm/extract.sh "$@" ||
    echo "warning: no packing job was submitted; after the array: sbatch --array=0 slurm/extract.sh $*" >&2
fi
part=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP + 1))
launch "${harvest[@]}" --part "$part/$SLURM_ARRAY_TASK_COUNT"
