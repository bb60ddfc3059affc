"""The table of sizes and speeds."""

import csv
from pathlib import Path

from tests.conftest import Command


def test_parameters_and_multiply_adds_as_the_papers_counter_has_them(command: Command, tmp_path: Path) -> None:
    """thop 0.1.1 in the authors' class: 149.91 G; in P2PNet: 100.15 G, 27.275 M."""
    done = command("finetune.profile", "--seconds", 0, "--variants", "P2PNet", "DPA-P2PNet")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "profile.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert len(rows) == 2
    for name, params, macs in [("P2PNet", 27.275341, 100.15), ("DPA-P2PNet", 32.296783, 149.91)]:
        assert float(rows[name]["params_m"]) == params
        assert round(float(rows[name]["macs_g"]), 2) == macs
        assert f"{macs:>8}" in done.stdout
    assert {"torch", "commit", "date", "device"} <= rows["P2PNet"].keys()


def test_speed_is_measured(command: Command, tmp_path: Path) -> None:
    done = command(
        "finetune.profile",
        "--seconds",
        0.1,
        "--size",
        64,
        "--variants",
        "MSD + refinement",
        "mFoV DPA-P2PNet, K=2",
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "profile.csv").open() as file:
        assert all(float(row["images_per_second"]) > 0.1 for row in csv.DictReader(file))


def test_an_unknown_variant_is_named(command: Command) -> None:
    done = command("finetune.profile", "--variants", "YOLO")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no variant 'YOLO'; choose from: P2PNet, E2E")
