"""Every script in turn, as a lab would: harvest, pre-train by each recipe, fine-tune; tiny nets on two nodes."""

import shutil
from pathlib import Path

import pytest
import torch

from shared.samples.sample_slides import write_slide, write_tiles
from shared.samples.specimen import section
from shared.weights import weights_file
from tests.slurm.checkout import ENDS, TWO_NODES, make_checkout
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FEW = ("--batch-size", "8", "--max-steps", "3", "--monitor-every", "0", "--loader.workers", "1")
CROPS = ("--method.image-size", "64")
VIT = ("--method.arch", "vit_tiny_patch16_224", *CROPS)
WORDS = {
    "moco_v2_resnet50": (*CROPS, "--method.queue-length", "64", "--method.key-group", "4"),
    "swav_resnet50": (
        *CROPS,
        "--method.small-size",
        "32",
        "--method.prototypes",
        "30",
        "--method.queue-length",
        "8",
    ),
    "dino_resnet50": (*CROPS, "--method.local-size", "32", "--method.output-dim", "64"),
    "dino_vitb": (*VIT, "--method.local-size", "32", "--method.output-dim", "64"),
    "mae_vitb": (*VIT, "--method.decoder-dim", "32", "--method.decoder-depth", "1"),
}


@pytest.fixture(scope="module")
def lab(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with sample slides, harvested by `extract.sh`, and sample tiles."""
    folder = make_checkout(tmp_path_factory.mktemp("lab") / "checkout")
    shutil.rmtree(folder / "shards")
    (folder / "slides").mkdir()
    for seed in (21, 22):
        write_slide(folder / "slides" / f"s{seed}.svs", section(seed, 512.0, 512.0), 0.25, aperio=True)
    write_tiles(folder / "data", tiles=(4, 2, 2))
    words = ("--max-patches", "20", "--workers", "1")
    job = slurm.submit(Path("slurm/extract.sh"), *words, cwd=folder, options=("--array=1-2", "--cpus-per-task=1"))
    pack = slurm.wait(slurm.wait_for_pack(job), *ENDS, timeout=600)
    assert pack["JobState"] == "COMPLETED", [path.read_text() for path in folder.glob("*.out")]
    return folder


def finish(slurm: Cluster, lab: Path, name: str, *words: object) -> str:
    """Submit a script, wait for its end; its log."""
    job = slurm.submit(Path(f"slurm/{name}.sh"), *words, cwd=lab, options=TWO_NODES)
    end = slurm.wait(job, *ENDS, timeout=900)
    log = (lab / f"{name}-{job}.out").read_text()
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), log
    return log


@pytest.mark.parametrize("name", WORDS)
def test_pre_training(slurm: Cluster, lab: Path, name: str):
    log = finish(slurm, lab, name, *FEW, *WORDS[name])
    assert "8 images = 2 rank(s) x 4 x 1 accumulated" in log and "finished after 3 steps" in log
    made = weights_file.read(lab / ("mae.pth" if name == "mae_vitb" else f"{name}.pth"))
    assert (made.metadata["recipe"], made.metadata["steps"]) == (name, 3)
    assert all(tensor.isfinite().all() for tensor in made.tensors.values() if tensor.is_floating_point())


def test_fine_tuning_from_what_was_pre_trained(slurm: Cluster, lab: Path):
    if not (lab / "mae.pth").exists():
        finish(slurm, lab, "mae_vitb", *FEW, *WORDS["mae_vitb"])
    log = finish(slurm, lab, "finetune", "--max-steps", "2", "--augment.crop", "64", "--workers", "0")
    assert "2 x cpu, 4 tiles a step" in log
    detector = torch.load(lab / "detector.pth", weights_only=True)
    assert '"recipe": "dpa_p2pnet"' in detector["metadata"]
