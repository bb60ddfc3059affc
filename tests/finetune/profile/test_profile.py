"""The table of sizes and speeds."""

import csv
from pathlib import Path

import pytest

from finetune.profile.__main__ import ProfileConfig, profile
from shared.errors import UserError
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


def test_exhausted_memory_is_a_sentence() -> None:
    with pytest.raises(UserError, match="--batch-size"):
        profile(ProfileConfig(train="regnetx_002", size=64, batch_size=10**12))


def test_an_unknown_variant_is_named(command: Command) -> None:
    done = command("finetune.profile", "--variants", "YOLO")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no variant 'YOLO'; choose from: U-Net, DeepLabV3+")


# Parameters with ten classes, multiply-adds as the paper's counter has them (the paper prints 277
# for DeepLabV3+, without its batch norms), and true ones.
RIVALS = {
    "U-Net": (31.038218, 876, 771),
    "DeepLabV3+": (40.349354, 278, 277),
    "U-CSRNet": (10.073738, 184, 183),
    "MCSpatNet": (26.137955, 1371, 1263),
    "GL": (21.500618, 432, 432),
    "FIDT": (66.593274, 579, 424),
    "CLTR": (43.62939, 105, 118),
}


def test_rivals_have_the_sizes_of_the_paper(command: Command, tmp_path: Path) -> None:
    done = command("finetune.profile", "--seconds", 0, "--variants", *RIVALS)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "profile.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    found = {name: (row["params_m"], row["macs_g"], row["true_macs_g"]) for name, row in rows.items()}
    assert {name: (float(p), round(float(m)), round(float(t))) for name, (p, m, t) in found.items()} == RIVALS


def test_the_speed_of_a_rival_includes_decoding(command: Command, tmp_path: Path) -> None:
    done = command("finetune.profile", "--seconds", 0.1, "--size", 64, "--variants", "U-CSRNet")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "profile.csv").open() as file:
        assert float(next(csv.DictReader(file))["images_per_second"]) > 0.05
