"""What goes wrong in a job ends it with one sentence, once, and leaves what was there before."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.slurm.checkout import ENDS, MAE, TWO_NODES, make_checkout
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path("slurm/mae_vitb.sh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


@pytest.fixture
def refused(slurm: Cluster, checkout: Path) -> Callable[..., str]:
    """Submit the script and expect it to fail, once; return the sentence that it says."""

    def submit(*words: object, environment: str = "ALL") -> str:
        options = (*TWO_NODES, f"--export={environment}")
        job = slurm.submit(SCRIPT, *MAE, *words, cwd=checkout, options=options)
        end = slurm.wait(job, *ENDS)
        log = (checkout / f"mae_vitb-{job}.out").read_text()
        assert (end["JobState"], slurm.history(job)) == ("FAILED", ["FAILED"]), log
        assert end["ExitCode"] in ("2:0", "143:0") and "Traceback" not in log, log
        said = {line for line in log.splitlines() if line.startswith("error: ")}
        assert len(said) == 1, log
        assert not [path for path in checkout.iterdir() if path.name.startswith((".requeue", ".attempts"))]
        return said.pop()

    return submit


@contextmanager
def mounted(slurm: Cluster, node: str, folder: Path, size: str = "1M") -> Iterator[Path]:
    """Mount a file system over a folder on one node only; yields the path by which it is seen from here."""
    inside = ("nsenter", "--target", str(slurm.process_of(node)), "--mount")
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    yield Path(f"/proc/{slurm.process_of(node)}/root{folder}")
    subprocess.run([*inside, "umount", str(folder)], check=True)


def test_a_batch_that_the_ranks_cannot_share(refused: Callable[..., str], checkout: Path):
    sentence = "error: a batch of 9 cannot be shared evenly by 2 ranks; give a multiple of 2 with --batch-size"
    assert refused("--batch-size", 9) == sentence
    assert not (checkout / "runs").exists()


def test_the_run_folder_of_another_recipe(refused: Callable[..., str], slurm: Cluster, checkout: Path):
    job = slurm.submit(SCRIPT, *MAE, "--max-steps", 2, cwd=checkout, options=TWO_NODES)
    assert slurm.wait(job, *ENDS)["JobState"] == "COMPLETED"
    before = state_of(checkout / "runs" / "mae_vitb")
    assert refused("--run-dir", "runs/mae_vitb", environment="ALL,RECIPE=mae_vitb_ihc") == (
        "error: runs/mae_vitb was started with name=mae_vitb, not mae_vitb_ihc; give another run folder with "
        "--run-dir, or remove this one"
    )
    assert state_of(checkout / "runs" / "mae_vitb") == before


def test_shards_that_are_missing_on_one_node(refused: Callable[..., str], slurm: Cluster, checkout: Path):
    with mounted(slurm, "n2", checkout / "shards"):
        sentence = refused()
    assert sentence.startswith("error: there are no shards in shards; make them with: python -m patch_extraction")


def test_other_shards_on_one_node(refused: Callable[..., str], slurm: Cluster, checkout: Path):
    with mounted(slurm, "n2", checkout / "shards") as there:
        other = make_checkout(checkout.with_name("other")) / "shards"
        (other / "shard-000001.tar").rename(other / "shard-000002.tar")
        (other / "index.json").unlink()
        for path in other.iterdir():
            (there / path.name).write_bytes(path.read_bytes())
        sentence = refused()
    assert sentence == "error: the ranks see different shards in shards; give every node the same with --shards"


def test_a_full_disk_at_the_second_checkpoint(refused: Callable[..., str], slurm: Cluster, checkout: Path):
    folder = checkout / "runs" / "mae_vitb"
    folder.mkdir(parents=True)
    with mounted(slurm, "n1", folder, "100M") as there:  # a checkpoint has 70 MB
        sentence = refused("--checkpoint-every", 5)
        assert sentence.startswith("error: cannot write runs/mae_vitb/checkpoint-000000010.pt (")
        assert "the checkpoints before it are kept: make room" in sentence
        assert [path.name for path in there.glob("*.pt")] == ["checkpoint-000000005.pt"]
        assert torch.load(there / "checkpoint-000000005.pt", weights_only=True)["step"] == 5
        assert not list(there.glob(".*.tmp"))


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
