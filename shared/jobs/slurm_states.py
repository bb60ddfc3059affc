"""States of Slurm jobs, on clusters with and without accounting."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence

# For an answer of the controller, s.
PATIENCE_S = 20
SUCCEEDED = "COMPLETED"
# Final states; GONE is ours: Slurm no longer knows the job, so it ended long ago.
ENDED = {SUCCEEDED, "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY"}
ENDED |= {"PREEMPTED", "TIMEOUT"}


def job_states(numbers: Iterable[str]) -> dict[str, str]:
    """Query states of jobs; empty if the controller does not respond.

    squeue knows them without accounting, but forgets them minutes after their end; then accounting is queried, if
    there is any.
    """
    wanted = list(numbers)
    command = ["squeue", "--states=all", "--array", "--noheader", "--format=%i|%T", f"--jobs={_ids(wanted)}"]
    done = _run(command)
    if done is None or (done.returncode and "Invalid job id" not in done.stderr):
        return {}
    listed = _listed(done.stdout)
    forgotten = [number for number in wanted if number not in listed]
    accounted = _accounted(forgotten) if forgotten else {}
    return {number: listed.get(number) or accounted.get(number, "GONE") for number in wanted}


def _accounted(numbers: Sequence[str]) -> dict[str, str]:
    """Query states from the accounting; empty without it or if it does not respond."""
    if shutil.which("sacct") is None:
        return {}
    options = ("--allocations", "--noheader", "--parsable2", "--format=JobID,State")
    done = _run(["sacct", *options, f"--jobs={_ids(numbers)}"])
    return _listed(done.stdout) if done is not None and not done.returncode else {}


def _ids(numbers: Sequence[str]) -> str:
    return ",".join(sorted({number.split("_")[0] for number in numbers}))


def _listed(text: str) -> dict[str, str]:
    """Lines `NUMBER|STATE`, where the state may go on with "by" and a user."""
    pairs = [line.strip().split("|", 1) for line in text.splitlines() if "|" in line]
    return {number: state.split()[0] for number, state in pairs if state}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a Slurm command; None if it takes too long: it would wait for its controller for minutes."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return None
