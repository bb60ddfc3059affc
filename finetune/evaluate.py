"""`python -m finetune.evaluate DETECTOR --data DIR`: the table of scores, beside another detector's if asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from finetune.datasets import DataOptions, load_data
from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.datasets.wider_views import require_views
from finetune.scoring.metrics import Scores
from finetune.scoring.sheets import comparison_sheet
from finetune.scoring.tile_scores import predict_tiles, score_tiles
from shared.cli import as_plain, check_range, make_folder, run
from shared.errors import UserError
from shared.files import atomic_path, write_json
from shared.model.detector_file import LoadedDetector
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.training.run_folder import provenance

# Slides of one scanner differ by less; twice the resolution makes other objects of cells.
MPP_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a detector on annotated tiles: F1 and AP per class, macro-averaged, within 3 um by default."""

    detector: tyro.conf.Positional[Path]
    """Detector file (finetune writes detector.pth)."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions()
    """The annotated data."""
    split: str = "test"
    """Which split to score: train, val or test."""
    baseline: Path | None = None
    """Another detector to score on the same tiles."""
    min_gain: float | None = None
    """Exit with code 1 unless macro F1 exceeds the baseline's by this much (0..1)."""
    out: Path = Path("evaluation")
    """Folder for scores.json and the picture of predicted against annotated cells."""


def load_for(path: Path, data: AnnotatedData, tiles: Sequence[Tile], device: torch.device) -> DPAP2PNet:
    """Load a detector that fits the data and the tiles to be scored.

    Raises:
        UserError: no detector file, or one with other classes or trained at another resolution,
            or more fields of view than the tiles have.
    """
    trained = LoadedDetector.load(path, device)
    if trained.classes != data.classes:
        raise UserError(
            f"{path} detects {', '.join(trained.classes)}, but {data.folder} is annotated with "
            f"{', '.join(data.classes)}; give the detector's names in its order with --classes NAME=VALUE ..."
        )
    if abs(trained.mpp / data.mpp - 1) > MPP_TOLERANCE:
        raise UserError(
            f"{path} was trained at {trained.mpp:g} um/px, but {data.folder} has {data.mpp:g}; resample the "
            "images, or correct the data's resolution with --slide-mpp"
        )
    require_views(tiles, trained.network.config.views)
    return trained.network


def evaluate(config: EvaluateConfig) -> int:
    """Score, print, write; 1 if the gain over the baseline is too small."""
    check(config)
    data = load_data(config.source)
    tiles = data.splits.get(config.split)
    if not tiles:
        raise UserError(
            f"{data.folder} has no split {config.split!r}, only {', '.join(data.splits)}; choose with --split"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = load_for(config.detector, data, tiles, device)
    baseline = load_for(config.baseline, data, tiles, device) if config.baseline else None
    make_folder(config.out, "--out")
    print(data)
    found = predict_tiles(detector, tiles, device)
    scores = score_tiles(tiles, found, data)
    print(f"\n{config.detector} on {config.split}, within {data.radius_um:g} um:\n{scores.table()}")
    with atomic_path(config.out / "comparison.png") as temporary:
        comparison_sheet(tiles, found, data.classes).save(temporary, format="PNG")
    other = score_tiles(tiles, predict_tiles(baseline, tiles, device), data) if baseline else None
    _write(config, scores, other)
    return _compare(config, scores, other) if other else 0


def check(config: EvaluateConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        UserError: names the option and what it takes.
    """
    if config.min_gain is not None and config.baseline is None:
        raise UserError("--min-gain needs a detector to compare with; give it with --baseline")
    check_range("min-gain", config.min_gain, 0, 1)


def _write(config: EvaluateConfig, scores: Scores, baseline: Scores | None) -> None:
    result = {
        "config": as_plain(config),
        "scores": scores.as_dict(),
        "baseline": baseline and baseline.as_dict(),
        "provenance": provenance(),
    }
    write_json(config.out / "scores.json", result)
    print(f"\npicture: {config.out / 'comparison.png'}\nscores: {config.out / 'scores.json'}")


def _compare(config: EvaluateConfig, scores: Scores, baseline: Scores) -> int:
    """Print the gain over the baseline; the exit code says whether it is what was asked for."""
    gain = scores.macro_f1 - baseline.macro_f1
    print(f"\n{config.baseline} on the same tiles:\n{baseline.table()}")
    print(f"\nmacro F1 {scores.macro_f1:.3f} against {baseline.macro_f1:.3f}: gain {gain:+.3f}")
    if config.min_gain is not None and not gain >= config.min_gain:
        print(f"the gain is below the {config.min_gain:g} asked for")
        return 1
    return 0


if __name__ == "__main__":
    run(lambda: evaluate(tyro.cli(EvaluateConfig, prog="python -m finetune.evaluate")))
