"""The Slurm that the launch scripts are tested on."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a running cluster; skips where there is none, fails instead if REQUIRE_SLURM=1."""
    if reason := why_not():
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()
    end = time.monotonic() + 5
    while strays := cluster.strays():
        assert time.monotonic() < end, strays
        time.sleep(0.05)
