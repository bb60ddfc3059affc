"""A harvest with the classical counter starts quickly: without torch, whose import takes seconds."""

import resource

import pytest

from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from tests.conftest import REPOSITORY


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    """An environment in which importing torch fails, in the command and in its workers."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "torch.py").write_text('raise RuntimeError("torch is not for a harvest")\n')
    return {"PYTHONPATH": f"{tmp_path / 'blocked'}:{REPOSITORY}"}


def test_help_is_there_in_three_seconds(command, without_torch):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("patch_extraction", "--help", **without_torch)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "--reader {auto,openslide}" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_harvest_without_torch_and_with_either_reader(command, without_torch, tmp_path):
    """The same shards, byte for byte."""
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.svs", section(21, 300.4, 290.7), 0.263, aperio=True)
    tars = []
    for reader in ("auto", "openslide"):
        words = ("--wsi-dir", "slides", "--out", reader, "--workers", 1, "--reader", reader)
        done = command("patch_extraction", *words, **without_torch)
        assert done.returncode == 0, done.stderr
        (tar,) = (tmp_path / reader / "slides").glob("*.tar")
        tars.append(tar.read_bytes())
    assert tars[0] == tars[1]
    assert tars[0].count(b".jpg\0") >= 3
