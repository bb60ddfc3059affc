"""The loop as users start it: resumed, killed, told to stop, given wrong input."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from finetune.recipes import RECIPES
from finetune.train import learning_rate
from shared.sample_slides import write_tiles
from tests.conftest import ENVIRONMENT, Command

TINY = (
    "--init",
    "random",
    "--arch",
    "vit_tiny_patch16_224",
    "--augment.crop",
    64,
    "--batch-size",
    2,
    "--workers",
    1,
)
# Four tiles, two a step: an epoch is two steps.
FEW = (*TINY, "--epochs", 3, "--evaluate-every", 1, "--checkpoint-every", 1)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(4, 1, 2), side=96)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [sys.executable, "-m", "finetune", *map(str, FEW), "--data", str(tiles)]
    subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    return folder


def weights(folder: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return torch.load(folder / "runs/finetune" / name, weights_only=True)["state_dict"]


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def steps_logged(folder: Path) -> list[int]:
    lines = (folder / "runs/finetune/metrics.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def test_a_run_leaves_weights_scores_curves_and_pictures(undisturbed: Path) -> None:
    run = undisturbed / "runs/finetune"
    names = {path.name for path in (run / "pictures").iterdir()}
    assert {"augmented.png", "proposals-000000.png", "proposals-000006.png", "comparison-best.png"} <= names
    assert set(json.loads((run / "test_scores.json").read_text())) == {"best", "last"}
    assert json.loads((run / "config.json").read_text())["learning_rate"] == 1e-4
    assert steps_logged(undisturbed) == [1, 2, 3, 4, 5, 6]
    assert (undisturbed / "detector.pth").read_bytes() == (run / "best.pth").read_bytes()
    metadata = json.loads(torch.load(undisturbed / "detector.pth", weights_only=True)["metadata"])
    assert metadata["classes"] == ["negative", "positive"]
    assert {"mpp", "recipe", "git_commit", "versions", "seed", "config"} <= metadata.keys()
    assert not list(undisturbed.rglob("*.tmp"))


def test_two_halves_equal_the_whole(command: Command, tiles: Path, tmp_path: Path, undisturbed: Path) -> None:
    done = command("finetune", *FEW, "--data", tiles, "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    assert steps_logged(tmp_path) == [1, 2, 3]
    done = command("finetune", *FEW, "--data", tiles)
    assert "going on after step 3" in done.stdout, done.stderr
    assert_same_weights(tmp_path, undisturbed)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2, signal.SIGTERM])
def test_a_killed_run_goes_on(
    number: signal.Signals, command: Command, tiles: Path, tmp_path: Path, undisturbed: Path
) -> None:
    words = [sys.executable, "-m", "finetune", *map(str, FEW), "--data", str(tiles)]
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        metrics = tmp_path / "runs/finetune/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step": 3' in metrics.read_text()):
            time.sleep(0.01)
        process.send_signal(number)
        code = process.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 85)
    done = command("finetune", *FEW, "--data", tiles)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    assert_same_weights(tmp_path, undisturbed)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_costs_one_checkpoint(
    command: Command, tiles: Path, tmp_path: Path, undisturbed: Path
) -> None:
    command("finetune", *FEW, "--data", tiles, "--max-steps", 4)
    newest = max((tmp_path / "runs/finetune").glob("checkpoint-*.pt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    done = command("finetune", *FEW, "--data", tiles)
    assert f"{newest.name} is damaged" in done.stderr
    assert "going on after step 2" in done.stdout
    assert_same_weights(tmp_path, undisturbed)


def test_another_detector_is_kept_as_bak(command: Command, tiles: Path, tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "detector.pth").write_bytes((undisturbed / "detector.pth").read_bytes())
    done = command("finetune", *TINY, "--data", tiles, "--epochs", 0)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "detector.pth.bak").read_bytes() == (undisturbed / "detector.pth").read_bytes()


def test_wrong_input_ends_in_one_sentence(
    command: Command, tiles: Path, tmp_path: Path, undisturbed: Path
) -> None:
    elsewhere = ("--run-dir", undisturbed / "runs/finetune")
    for words, sentence in [
        (("--init", "random"), "there is no annotated data at data; give its folder with --data"),
        (("--init", "none.pth", "--data", tiles), "there is no weights file none.pth"),
        ((*FEW, "--data", tiles, *elsewhere, "--epochs", 9), "was started with epochs=3, not 9"),
        (("nonsense", "--data", tiles), "there is no recipe 'nonsense'; choose one of dpa_p2pnet"),
        ((*TINY, "--data", tiles, "--interval", 64), "more than proposals at 64 px; give --interval 32"),
    ]:
        done = command("finetune", *words)
        assert done.returncode == 2, (words, done.stderr)
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("**/*.pth"))


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    demo = RECIPES["demo"]
    rates = [learning_rate(demo, step, 100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([demo.learning_rate * step / 10 for step in range(1, 11)])
    assert rates[55] == pytest.approx(demo.learning_rate / 2, rel=1e-2)
    assert 0 < rates[-1] < demo.learning_rate / 1000
