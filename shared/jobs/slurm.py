"""Submit tasks as an array of Slurm jobs, wait for them and report; works without accounting."""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from shared.cli import Range, make_folder, validate
from shared.errors import UserError
from shared.files import write_json
from shared.jobs.in_job import GRACE_S, RunInJob
from shared.jobs.job_report import Job, report
from shared.jobs.slurm_states import ENDED, job_states
from shared.jobs.tasks import Task
from shared.signals import StopSignal

# From the warning to the end of a job: a step, its checkpoint and the scores may take as long.
WARNING_S = 180
JOBS = "jobs.json"
# Attempts to query the controller, which may be busy or away for minutes.
ASKED_AT_MOST = 5


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Resources of a Slurm job."""

    partition: str | None = None
    """Partition; default: the cluster's."""
    account: str | None = None
    """Account; default: the user's."""
    nodes: Annotated[int, Range(1)] = 1
    """Nodes of a job."""
    gpus: Annotated[int, Range(0)] = 1
    """GPUs of each node, and as many tasks: one rank a GPU."""
    cpus: Annotated[int, Range(1)] = 4
    """CPU cores of each task."""
    hours: Annotated[float, Range(1 / 60)] = 24.0
    """Time limit; a job that needs longer is requeued and resumes from its checkpoint."""
    parallel: Annotated[int, Range(1)] = 16
    """Jobs that run at the same time, at most."""
    options: tuple[str, ...] = ()
    """Other options of sbatch, each NAME=VALUE, e.g. qos=high constraint=a100 mem=64G."""

    @property
    def tasks_per_node(self) -> int:
        """Number of tasks: one a GPU, or one without GPUs."""
        return max(self.gpus, 1)

    @property
    def ranks(self) -> int:
        """Ranks of a job."""
        return self.nodes * self.tasks_per_node


def check(slurm: Slurm) -> None:
    """Check ranges and options.

    Raises:
        UserError: names the option and what it takes, or Slurm is not there.
    """
    validate(slurm, "slurm.")
    _options(slurm)
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--launcher slurm needs Slurm's commands (sbatch, srun, squeue), which are not here")


def run_in_slurm(
    tasks: Sequence[Task], folder: Path, slurm: Slurm, stop: StopSignal, then: Task | None = None
) -> dict[str, str]:
    """Submit tasks as one array, wait, report; returns the last state of each by its name.

    The jobs do not end with this process: the same call waits again for those that are still queued or run.

    Args:
        tasks: In any order; each by a name of its own.
        folder: For the list of jobs and submitit's files; must be seen by all nodes.
        slurm: What each job asks for.
        stop: Stop signal, which ends the waiting.
        then: A task of one process that begins when all others have ended, however they did.

    Raises:
        UserError: Slurm refuses the jobs.
    """
    jobs = _still_queued(tasks, folder)
    waiting = {job.task.name for job in jobs}
    begun = _submit([task for task in tasks if task.name not in waiting], folder, slurm)
    jobs += begun
    if then is not None:
        last = [] if begun else _still_queued([then], folder)
        small = dataclasses.replace(slurm, nodes=1, gpus=0, cpus=min(2, slurm.cpus))
        jobs += last or _submit([then], folder, small, after=jobs)
    if not jobs:
        return {}
    write_json(folder / JOBS, {job.task.name: job.number for job in jobs})
    states = _wait(jobs, stop)
    print(report(jobs, states, folder), flush=True)
    named = {job.task.name: states[job.number] for job in jobs}
    if are_left(named):
        left = sorted({job.number.split("_")[0] for job in jobs if states[job.number] not in ENDED})
        print(f"the jobs stay with Slurm (end them with: scancel {' '.join(left)})")
    return named


def are_left(states: Mapping[str, str]) -> bool:
    """Return True if jobs are still queued or running because waiting was interrupted."""
    return any(state not in ENDED for state in states.values())


def _still_queued(tasks: Iterable[Task], folder: Path) -> list[Job]:
    """Find jobs of an earlier call that have not ended."""
    path = folder / JOBS
    if not path.exists():
        return []
    numbers = json.loads(path.read_text(encoding="utf-8"))
    jobs = [Job(task, numbers[task.name]) for task in tasks if task.name in numbers]
    if not jobs:
        return []
    for _ in range(ASKED_AT_MOST):  # to submit again what runs would spoil it
        if states := job_states(job.number for job in jobs):
            break
        time.sleep(2)
    else:
        raise UserError(f"Slurm does not say how the jobs of {path} are (try squeue); nothing was submitted")
    left = [job for job in jobs if states[job.number] not in ENDED]
    for job in left:
        print(f"  {job.task.name}: job {job.number} is with Slurm already")
    return left


def _submit(tasks: Sequence[Task], folder: Path, slurm: Slurm, after: Sequence[Job] = ()) -> list[Job]:
    """Submit all tasks as one array, to begin after the end of other jobs."""
    if not tasks:
        return []
    import submitit  # takes a second, and only this needs it

    make_folder(folder, "of jobs")
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    executor.update_parameters(**_parameters(slurm))
    if after:
        ids = sorted({job.number.split("_")[0] for job in after})
        executor.update_parameters(slurm_dependency=":".join(["afterany", *ids]))
    try:
        with executor.batch():
            submitted = [executor.submit(RunInJob(task)) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        reason = "; ".join(str(error).replace("sbatch: ", "").replace("error: ", "").strip().splitlines())
        raise UserError(f"Slurm refuses the jobs ({reason}); change what they ask for with --slurm.*") from error
    jobs = [Job(task, job.job_id) for task, job in zip(tasks, submitted, strict=True)]
    for job in jobs:
        print(f"  {job.task.name}: job {job.number}: {job.task}")
    return jobs


def _parameters(slurm: Slurm) -> dict[str, Any]:
    """Parameters from which submitit writes the header of the batch script."""
    asked: dict[str, Any] = {
        "name": "dpa-p2pnet",
        "timeout_min": round(60 * slurm.hours),
        "nodes": slurm.nodes,
        "tasks_per_node": slurm.tasks_per_node,
        "cpus_per_task": slurm.cpus,
        "slurm_array_parallelism": slurm.parallel,
        "slurm_signal_delay_s": WARNING_S,
        "slurm_setup": [
            # srun no longer takes this over from sbatch by itself (since Slurm 22.05).
            f"export SRUN_CPUS_PER_TASK={slurm.cpus}",
            # Where SBATCH_EXPORT=NONE is the custom, tasks would not even learn that submitit started them.
            "export SLURM_EXPORT_ENV=ALL",
            # Of a job that this one was submitted from; srun refuses two of them.
            "unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE",
        ],
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--wait={GRACE_S}"],
        "slurm_additional_parameters": {"requeue": True, **_options(slurm)},
    }
    if slurm.gpus:
        asked["gpus_per_node"] = slurm.gpus
    named = {"slurm_partition": slurm.partition, "slurm_account": slurm.account}
    return asked | {name: value for name, value in named.items() if value is not None}


def _options(slurm: Slurm) -> dict[str, str]:
    pairs = [word.partition("=") for word in slurm.options]
    for name, _, value in pairs:
        if not name or not value:
            raise UserError(f"--slurm.options {name} is not NAME=VALUE; give e.g. qos=high")
    return {name.removeprefix("--"): value for name, _, value in pairs}


def _wait(jobs: Sequence[Job], stop: StopSignal) -> dict[str, str]:
    """Wait until all jobs have ended or a signal comes, printing changes; returns the last states."""
    states = dict.fromkeys([job.number for job in jobs], "PENDING")
    began = time.monotonic()
    while not stop.received:
        now = job_states(number for number, state in states.items() if state not in ENDED)
        for job in jobs:
            if (state := now.get(job.number, states[job.number])) != states[job.number]:
                print(f"  {job.task.name}: {state.lower()}", flush=True)
        states |= now
        if all(state in ENDED for state in states.values()):
            break
        # Often at first, when jobs fail; later every half minute is enough, and easy on the controller.
        _sleep(min(30.0, 0.5 + 0.05 * (time.monotonic() - began)), stop)
    return states


def _sleep(seconds: float, stop: StopSignal) -> None:
    """Sleep until a signal arrives (Python resumes sleeping after a handler returns)."""
    end = time.monotonic() + seconds
    while not stop.received and time.monotonic() < end:
        time.sleep(0.2)
