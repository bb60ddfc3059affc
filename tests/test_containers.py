"""Images hold every package of the project, and their smoke test passes here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT
from tests.structure import PACKAGES, ROOT


def test_images_copy_all_packages() -> None:
    docker, apptainer = ((ROOT / name).read_text() for name in ("Dockerfile", "apptainer.def"))
    copied = re.findall(r"^COPY (\S+) \1$", docker, re.MULTILINE)
    listed = re.findall(r"^    (\S+) /opt/dpa-p2pnet/\1$", apptainer, re.MULTILINE)
    assert {*PACKAGES, "tests/smoke.sh"} <= set(copied) and {*PACKAGES, "tests/smoke.sh"} <= set(listed)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*copied, "pyproject.toml", "README.md", "LICENSE"} == kept


@pytest.mark.slow  # a minute: three commands, each of which imports torch
def test_the_smoke_test_passes(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["sh", ROOT / "tests" / "smoke.sh"]
    done = subprocess.run(
        words, cwd=tmp_path, env={**ENVIRONMENT, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("smoke test passed\n")
