"""What the batch scripts do around a stage, on a real Slurm; a few lines of shell take the stage's place."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.checkout import make_shell_stages
from tests.slurm.cluster import Cluster

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
TWO_TASKS = ("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
# Files of the checkout.
BEFORE = {".venv", "slurm", "shared", "ssl_pretrain", "patch_extraction"}
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")


@dataclass(frozen=True)
class Case:
    stage: str
    """Shell, run by every task in the place of a stage."""
    state: str
    code: str
    restarts: int = 0
    says: str = ""
    options: tuple[str, ...] = TWO_TASKS


CASES = {
    "hangs after its checkpoint": Case(
        '[ -n "$SLURM_RESTART_COUNT" ] && exit 0\n[ $SLURM_PROCID = 0 ] && printf 3 >$REQUEUE_MARKER\nsleep 1000',
        *("COMPLETED", "0:0", 1, "the run hangs although its checkpoint is written; ending it"),
    ),
    "one rank hangs when the others are done": Case("[ $SLURM_PROCID = 0 ] || sleep 1000", "FAILED", "137:0"),
    "one rank is killed": Case(
        # 143 is the other rank's, which srun ends.
        "[ $SLURM_PROCID = 1 ] && kill -KILL $$; sleep 1000",
        "FAILED",
        "143:0",
        options=TWO_NODES,
    ),
    "stops at one place again and again": Case(
        '[ $SLURM_PROCID = 0 ] && printf "before its first step" >$REQUEUE_MARKER; exit 85',
        *(
            "FAILED",
            "85:0",
            2,
            "error: three attempts stopped before its first step, so the job is not queued again",
        ),
    ),
    "stops at other places": Case(
        '[ "$SLURM_RESTART_COUNT" = 3 ] && exit 0\n'
        '[ $SLURM_PROCID = 0 ] && printf "at $SLURM_RESTART_COUNT" >$REQUEUE_MARKER; exit 85',
        *("COMPLETED", "0:0", 3),
    ),
    "fails at its start": Case("echo error: no such recipe >&2; exit 2", "FAILED", "2:0"),
    "has no GPUs": Case(
        "exit 0",
        *("FAILED", "2:0", 0, "error: this job was given no GPUs; ask for them with --gpus-per-node"),
        options=("--gpus-per-node=0", "--ntasks-per-node=1"),
    ),
    "has more tasks than GPUs": Case(
        "exit 0",
        *("FAILED", "2:0", 0, "error: this job has 2 tasks and 1 GPUs a node; give --ntasks-per-node and"),
        options=("--gpus-per-node=1", "--ntasks-per-node=2"),
    ),
}


# Each element stops at a checkpoint once, when all run; the last one started has the number of the whole array.
ELEMENT = """
case "$*" in *--pack*) exit 0 ;; esac
[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0
touch began-$SLURM_ARRAY_TASK_ID
until [ -e began-1 ] && [ -e began-2 ]; do sleep 0.1; done
printf "at 1" >"$REQUEUE_MARKER"
exit 85
"""


@pytest.fixture(scope="module")
def jobs(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[int, Path]]:
    """All cases at the same time; one finds a marker lying there, which is not its own."""
    started = {}
    for name, case in CASES.items():
        folder = make_shell_stages(tmp_path_factory.mktemp("root"), case.stage)
        options = ("--hold", "--export=ALL,GRACE=1", *case.options)
        job = slurm.submit(Path("slurm/mae_vitb.sh"), cwd=folder, options=options)
        if name == "fails at its start":
            (folder / f".requeue-{job}-0").touch()
        slurm.run("scontrol", "release", job)
        started[name] = (job, folder)
    folder = make_shell_stages(tmp_path_factory.mktemp("root") / "a folder", ELEMENT)
    options = ("--array=1-2", "--cpus-per-task=1")
    started["array"] = (slurm.submit(Path("slurm/extract.sh"), cwd=folder, options=options), folder)
    return started


@pytest.mark.parametrize("name", CASES)
def test_how_a_job_ends(slurm: Cluster, jobs: Mapping[str, tuple[int, Path]], name: str):
    (job, folder), case = jobs[name], CASES[name]
    end = slurm.wait(job, *ENDS)
    log = (folder / f"mae_vitb-{job}.out").read_text()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == (case.state, case.code, str(case.restarts)), log
    assert slurm.history(job) == ["PENDING"] * case.restarts + [case.state]
    assert case.says in log
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(set(errors)) <= 1, log
    assert {path.name for path in folder.iterdir()} == BEFORE | {f"mae_vitb-{job}.out"}


def test_each_element_of_an_array_is_queued_again_by_itself(slurm: Cluster, jobs: Mapping[str, tuple[int, Path]]):
    array, folder = jobs["array"]
    pack = slurm.wait(slurm.wait_for_pack(array), *ENDS)
    for element in (1, 2):
        end = slurm.job(f"{array}_{element}")
        log = (folder / f"extract-{array}_{element}.out").read_text()
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log
        assert slurm.history(end["JobId"]) == ["PENDING", "COMPLETED"]
        assert end["EndTime"] <= pack["StartTime"]


def test_words_after_the_script_reach_the_stage_as_they_are(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stage = 'printf "<%s>" "$@" "$SLURM_PROCID of $SLURM_NTASKS" "$MASTER_ADDR${RANK-}" $SRUN_CPUS_PER_TASK; echo'
    folder = make_shell_stages(tmp_path / "root", stage)
    # The job begins without the rest of the environment, which its tasks need nevertheless; but with what Slurm
    # told the session it was submitted from, and with what torchrun left in it.
    ours = ("--cpus-per-task=3", "--export=RECIPE=swav_resnet50_ihc,MASTER_ADDR=elsewhere,RANK=7")
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--mem=1G", *ours)
    monkeypatch.setitem(slurm.environment, "SLURM_MEM_PER_CPU", "4000")
    job = slurm.submit(Path("slurm/swav_resnet50.sh"), "--out", "my file", "*", cwd=folder, options=options)
    assert slurm.wait(job, *ENDS)["JobState"] == "COMPLETED"
    log = (folder / f"swav_resnet50-{job}.out").read_text()
    lines = [line for line in log.splitlines() if not line.startswith("srun: ")]
    words = "<ssl_pretrain><swav_resnet50_ihc><--out><my file><*>"
    assert sorted(lines) == [f"{words}<{rank} of 2><n1><3>" for rank in (0, 1)]


@pytest.mark.parametrize(("array", "elements"), [("3-7:2", (3, 5, 7)), ("0-2", (0, 1, 2))])
def test_an_array_harvests_in_parts_and_then_packs(
    slurm: Cluster, tmp_path: Path, array: str, elements: tuple[int, ...]
):
    """Who packs waits for all of them, although one fails, and asks for no more time than they."""
    fails = elements[1]
    stage = f'sleep 1; echo "$@"; [ "$SLURM_ARRAY_TASK_ID" = {fails} ] && exit 3; exit 0'
    folder = make_shell_stages(tmp_path / "root", stage)
    job = slurm.submit(
        Path("slurm/extract.sh"), "--seed", 4, cwd=folder, options=(f"--array={array}", "--time=4:00:00")
    )
    pack = slurm.wait_for_pack(job)
    assert slurm.wait(pack, *ENDS)["JobState"] == "COMPLETED"
    assert slurm.job(pack)["TimeLimit"] == "04:00:00"
    log = next(folder.glob("pack-*_0.out")).read_text()
    words = "patch_extraction --wsi-dir slides --workers {} --seed 4 {}\n"
    assert log.endswith(words.format(2, "--pack"))
    for part, element in enumerate(elements, 1):
        text = (folder / f"extract-{job}_{element}.out").read_text()
        assert words.format(16, f"--part {part}/3") in text
        assert slurm.job(f"{job}_{element}")["JobState"] == ("FAILED" if element == fails else "COMPLETED")
        assert slurm.job(f"{job}_{element}")["EndTime"] <= slurm.job(pack)["StartTime"]


@pytest.mark.parametrize(
    ("script", "told", "sentence"),
    [
        # What Slurm tells the first task of --array=3,7.
        (
            "extract.sh",
            {"ID": "3", "MIN": "3", "MAX": "7", "STEP": "1", "COUNT": "2"},
            "gaps; give --array=1-N",
        ),
        ("mae_vitb.sh", {"PYTHON": "/no/such/python"}, "there is no /no/such/python here; make setup makes .venv"),
    ],
)
def test_what_a_job_refuses_to_begin(script: str, told: dict[str, str], sentence: str):
    array = {f"SLURM_ARRAY_TASK_{name}": value for name, value in told.items()}
    environment = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1", **array, **told}
    words = ["bash", f"slurm/{script}"]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ") and sentence in done.stderr


@pytest.mark.parametrize("script", ["mae_vitb.sh", "finetune.sh", "extract.sh"])
def test_outside_slurm_it_says_how_to_start_it(script: str):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", f"slurm/{script}"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: this is a batch job, start it with: sbatch slurm/{script} (without")
    assert done.stderr.count("\n") == 1


def test_submitted_from_elsewhere_it_says_from_where(slurm: Cluster, tmp_path: Path):
    job = slurm.submit(REPOSITORY / "slurm" / "mae_vitb.sh", cwd=tmp_path, options=TWO_TASKS)
    assert slurm.wait(job, *ENDS)["ExitCode"] == "2:0"
    log = (tmp_path / f"mae_vitb-{job}.out").read_text()
    assert log.splitlines()[-1] == "error: submit this from the root of the checkout"
