"""A real Slurm of two nodes with eight pretended GPUs each, on this machine, without systemd or /etc.

slurmctld and two slurmd run as children of this process from a configuration in a scratch folder and listen
on loopback only. Each slurmd has namespaces of its own, so that the nodes have names that resolve and every
process of a node ends with it. The kernel kills them all if this process dies.
"""

import ctypes
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, free_port
from tests.slurm.accounting import WITHOUT, Accounting

NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "unshare")
INSTALL = "apt-get install -y --no-install-recommends slurm-wlm munge"
CONFIG = """
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
# A requeued job waits a second longer than a credential lives; 5 is the least that is accepted.
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/history
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
ReturnToService=2
KillWait=30
MinJobAge=3600
SlurmdTimeout=60
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
NodeName=DEFAULT CPUs=128 Boards=1 SocketsPerBoard=2 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=1000000
NodeName=DEFAULT Gres=gpu:a100:8
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]}
# Never there, so that headers for eight nodes can be looked at.
NodeName=n[3-8] NodeAddr=127.0.0.1 Port=9 State=CLOUD
PartitionName=DEFAULT Nodes=n1,n2 MaxTime=INFINITE PriorityTier=1
PartitionName=gpu Default=YES
PartitionName=patient GraceTime=100
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
PartitionName=large Nodes=n[1-8]
"""
# Run in namespaces of its own: the node's host name, and a hosts file in which the nodes have addresses.
NODE = 'mount --bind "$0" /etc/hosts && hostname "$1" && exec slurmd -D -N "$1"'
UNSHARE = ("unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")


def why_not() -> str:
    """Why no cluster can be started here; empty if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing); {INSTALL}"
    return "" if os.geteuid() == 0 else "the Slurm of the tests needs root (it uses namespaces)"


def search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """Starts on construction; `stop` it."""

    def __init__(self, folder: Path, accounting: bool = False) -> None:
        self.folder = folder
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment = {
            **inherited,
            "PATH": search_path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # a database first, then slurmctld, then nodes
        told = Accounting(folder) if accounting else None
        self._configure(told.for_slurm if told else WITHOUT)
        if told:
            told.bootstrap()
            self._start("mariadbd", *told.database)
            self._until(told.database_answers, "the database")
            self._start("slurmdbd", "slurmdbd", "-D")
            self._until(told.slurmdbd_answers, "slurmdbd")
        self._start("slurmctld", "slurmctld", "-D")
        self._until(lambda: self.run("scontrol", "ping", check=False).returncode == 0, "slurmctld")
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def start_node(self, node: str) -> None:
        """Switch a node on."""
        self._start(node, *UNSHARE, "sh", "-c", NODE, str(self.folder / "hosts"), node)

    def crash_node(self, node: str) -> None:
        """Kill everything on a node, as a power cut does, and let the controller know soon."""
        crashed = self._children.pop(node)
        crashed.kill()  # unshare ignores TERM; its namespace goes with it
        crashed.wait(10)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=crashed")

    def process_of(self, node: str) -> int:
        """Return a process in the namespaces of a node."""
        return self._children[node].pid

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.run("scancel", "--user=root", check=False)
        for node in NODES:
            if node in self._children:
                self._children[node].kill()
        for daemon in ("slurmctld", "slurmdbd", "mariadbd"):
            if daemon in self._children:
                self._children[daemon].terminate()
                self._children[daemon].wait(20)
        for child in self._children.values():
            child.wait(10)

    def run(self, *words: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command."""
        told = {"env": self.environment, "capture_output": True, "text": True, "timeout": 30, **options}
        done = subprocess.run([str(word) for word in words], check=False, **told)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def output(self, *words: object) -> str:
        return self.run(*words, check=False).stdout

    def submit(self, script: Path, *args: object, cwd: Path, options: tuple[str, ...] = ()) -> int:
        """Submit a batch script from a folder; returns the job's number."""
        # Two clusters on one machine number their jobs alike, so the script's port would be the same.
        self.environment["MASTER_PORT"] = str(free_port())
        done = self.run("sbatch", "--parsable", *options, script, *args, cwd=cwd)
        return int(done.stdout)

    def stage(self, module: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Type `python -m MODULE WORDS` in a folder on the login node, which has no GPU."""
        environment = {**self.environment, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
        words = (sys.executable, "-m", module, *words)
        return self.run(*words, check=False, cwd=cwd, env=environment, timeout=300)

    def log_in(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Make this process one on the login node, in a folder."""
        for name in ("PATH", "SLURM_CONF"):
            monkeypatch.setenv(name, self.environment[name])
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        monkeypatch.chdir(folder)

    def job(self, number: object) -> dict[str, str]:
        """Return what `scontrol` knows of a job: JobState, ExitCode, Restarts ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.output("scontrol", "show", "job", "-o", number)))

    def wait(self, number: object, *states: str, timeout: float = 120) -> dict[str, str]:
        """Wait until a job is in one of the states."""
        self._until(lambda: self.job(number)["JobState"] in states, f"job {number} to be {states}", timeout)
        return self.job(number)

    def wait_until(self, due: Callable[[], bool], timeout: float) -> None:
        """Wait until something is due."""
        self._until(due, "what a test waits for", timeout)

    def wait_until_idle(self) -> None:
        """Wait until nothing of any job runs, batch scripts included."""
        states = ("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T")
        self._until(lambda: self.output(*states).split() == ["idle"] * 2, "idle nodes", 40)

    def wait_for_pack(self, array: int) -> str:
        """Wait until the first task of a harvest has submitted the job that packs; its number."""
        command = ("squeue", "-h", "--states=all", "--name=pack", "--format=%F")
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [number for number in map(int, self.output(*command).split()) if number > array]
            return bool(found)

        self._until(is_there, f"the pack of {array}")
        return f"{min(found)}_0"

    def history(self, number: object) -> list[str]:
        """How each attempt of a job ended, in order: PENDING (requeued), PREEMPTED, NODE_FAIL, COMPLETED ..."""
        path = self.folder / "log" / "history"
        text = path.read_text() if path.exists() else ""
        return re.findall(rf"^JobId={number} .*?JobState=(\w+)", text, re.MULTILINE)

    def strays(self) -> list[str]:
        """Command lines of processes that belong to this cluster and are not its daemons' zombies."""
        return strays_of(self.folder)

    def _configure(self, accounting: str) -> None:
        for name in ("state", "spool", "log", "dev"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        for index in range(8):  # clones of /dev/null: a GPU needs a device file to get a number
            os.mknod(self.folder / "dev" / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        gpus = f"Name=gpu Type=a100 File={self.folder}/dev/gpu[0-7]\n"
        (self.folder / "gres.conf").write_text(gpus)
        (self.folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
        config = CONFIG.format(folder=self.folder, ports=[free_port() for _ in range(3)])
        (self.folder / "slurm.conf").write_text(config + accounting)

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / "log" / f"{name}.log").open("ab") as file:
            self._children[name] = subprocess.Popen(
                words, env=self.environment, stdout=file, stderr=file, preexec_fn=_die_with_parent
            )

    def _until(self, due: Callable[[], bool], what: str, timeout: float = 20) -> None:
        end = time.monotonic() + timeout
        while not due():
            dead = [name for name, child in self._children.items() if child.poll() is not None]
            if dead or time.monotonic() > end:
                logs = "".join(f"\n{p.name}: {p.read_text()[-1500:]}" for p in (self.folder / "log").iterdir())
                raise AssertionError(f"waited {timeout} s for {what}; dead: {dead}{logs}")
            time.sleep(0.02)


def strays_of(folder: Path) -> list[str]:
    """Command lines of processes that belong to the cluster of a folder."""
    mark = f"SLURM_CONF={folder}/".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
