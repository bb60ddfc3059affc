"""The Slurm of the tests leaves nothing behind, however the tests end."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.slurm.accounting import why_no_accounting
from tests.slurm.cluster import Cluster, strays_of, why_not

# What a session of tests is at its worst moment: jobs run on both nodes.
SESSION = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
cluster = Cluster(Path(sys.argv[1]), accounting=sys.argv[2] == "True")
cluster.run("sbatch", "--nodes=2", "--output=/dev/null", "--wrap", "srun /usr/bin/sleep 1000")
while len([line for line in cluster.strays() if line.startswith("/usr/bin/sleep")]) < 2:
    time.sleep(0.05)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("accounting", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_is_left_after_kill_9(accounting: bool, slurm: Cluster, tmp_path: Path):
    if accounting and (reason := why_no_accounting()):
        pytest.skip(reason)
    folder = tmp_path / "s"
    words = [sys.executable, "-c", SESSION, str(folder), str(accounting)]
    with subprocess.Popen(words, env=ENVIRONMENT, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as session:
        watchdog = threading.Timer(60, session.kill)
        watchdog.start()
        assert session.stdout is not None and session.stdout.readline() == "ready\n"
        configs = "".join(path.read_text() for path in folder.glob("slurm*.conf"))
        ports = set(map(int, re.findall(r"Port=(\d{4,5})$", configs, re.M)))
        assert len(ports) >= 3 and all(map(listens, ports))
        watchdog.cancel()
        os.kill(session.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while left := [*strays_of(folder), *filter(listens, ports)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_machine_without_slurm_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tests.slurm.cluster.search_path", lambda: str(tmp_path))
    assert why_not() == (
        "Slurm is not installed (slurmctld, slurmd, sbatch, scontrol, unshare missing); "
        "apt-get install -y --no-install-recommends slurm-wlm munge"
    )
