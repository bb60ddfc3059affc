"""Without torch, whose import takes seconds: the classical counter, dry runs, checks and packing."""

import resource

import pytest

from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from tests.conftest import REPOSITORY


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    """Return an environment in which importing torch fails, in the command and in its workers."""
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
        words = (*words, "--counter", "haematoxylin")
        done = command("patch_extraction", *words, **without_torch)
        assert done.returncode == 0, done.stderr
        (tar,) = (tmp_path / reader / "slides").glob("*.tar")
        tars.append(tar.read_bytes())
    assert tars[0] == tars[1]
    assert tars[0].count(b".jpg\0") >= 3


def test_only_counting_by_the_default_needs_torch(command, without_torch, tmp_path):
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.svs", section(21, 300.4, 290.7), 0.263, aperio=True)
    words = ("--wsi-dir", "slides", "--workers", 1)
    assert command("patch_extraction", *words, "--part", "1/1").returncode == 0
    for option in (("--dry-run",), ("--pack",), ("--check", "shards")):
        done = command("patch_extraction", *words, *option, **without_torch)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards" / "contact_sheet.png").exists()
