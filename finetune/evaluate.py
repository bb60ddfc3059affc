"""`python -m finetune.evaluate DETECTOR --data DIR`: table of scores, optionally beside another detector's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import tyro
from PIL import Image

from finetune.datasets import DataOptions, load_data
from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.datasets.wider_views import require_views
from finetune.predict.in_memory import FoundCells, predict_tiles
from finetune.scoring.metrics import Scores
from finetune.scoring.operating_point import FLOOR, resolve_threshold
from finetune.scoring.precision_recall import precision_recall_picture
from finetune.scoring.sheets import comparison_sheet
from finetune.scoring.tile_scores import score_tiles, tile_curves
from shared.cli import Range, as_plain, make_folder, parse, run, validate
from shared.errors import UserError
from shared.files import own_path, write_json
from shared.model.cells import Cells
from shared.model.detector_file import LoadedDetector, decoded_by
from shared.training.gpu_usage import ON_CPU, explain_out_of_memory
from shared.training.run_folder import provenance
from shared.wsi.slide import MOST_UPSAMPLING


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a detector on annotated tiles: F1 and AP per class, macro-averaged, within 3 um by default."""

    help_groups: ClassVar = {
        "detector": "input",
        "threshold": "scoring",
        "out": "output",
    }

    detector: tyro.conf.Positional[Path]
    """Detector file (finetune writes detector.pth)."""
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions()
    """Annotated data."""
    split: str = "test"
    """Split to score: train, val or test."""
    threshold: str = "paper"
    """Rule by which a proposal is a cell: paper (a class is more probable than background), a least probability of
    its class, or best (the least probability that was best on validation, stored in each detector)."""
    decoder: str | None = None
    """Other decoder of the maps of the detector: otm finds the points of a density by OT-M."""
    baseline: Path | None = None
    """Another detector to score on the same tiles."""
    min_gain: Annotated[float | None, Range(0, 1)] = None
    """Exit with code 1 unless macro F1 exceeds the baseline's by this much (0 to 1)."""
    out: Path = Path("evaluation")
    """Folder of scores.json, comparison.png and precision_recall.png."""


def load_for(path: Path, data: AnnotatedData, tiles: Sequence[Tile]) -> LoadedDetector:
    """Load a detector that fits the data and the tiles to be scored.

    Raises:
        UserError: no detector file; a detector of other classes; images that are far coarser than those it was
            trained on, or have fewer fields of view than it takes.
    """
    detector = LoadedDetector.load(path)
    if detector.classes != data.classes:
        raise UserError(
            f"{path} detects {', '.join(detector.classes)}, but {data.folder} is annotated with "
            f"{', '.join(data.classes)}; give the detector's names in its order with --classes NAME=VALUE ..."
        )
    if data.mpp > detector.mpp * MOST_UPSAMPLING:
        raise UserError(
            f"{path} was trained at {detector.mpp:g} um/px, but {data.folder} has only {data.mpp:g}; "
            "correct the data's resolution with --slide-mpp, or give finer images"
        )
    require_views(tiles, detector.network.config.views)
    return detector


class Evaluation(NamedTuple):
    """Cells of a detector on the tiles, by the rule of `--threshold`, and their scores."""

    title: str
    threshold: float | None
    found: list[FoundCells]
    cells: list[Cells]
    scores: Scores


def evaluate(config: EvaluateConfig) -> int:
    """Score, print and write; returns 1 if the gain over the baseline is too small.

    Raises:
        UserError: options, detectors or data do not fit, or memory ran out.
    """
    check(config)
    with explain_out_of_memory(ON_CPU):
        return _score(config)


def _score(config: EvaluateConfig) -> int:
    data = load_data(config.source)
    tiles = data.splits.get(config.split)
    if not tiles:
        raise UserError(
            f"{data.folder} has no split {config.split!r}, only {', '.join(data.splits)}; choose with --split"
        )
    paths = [config.detector, *([config.baseline] if config.baseline else [])]
    detectors = [load_for(path, data, tiles) for path in paths]
    decoded_by(detectors[0], config.decoder)
    thresholds = [resolve_threshold(config.threshold, detector) for detector in detectors]
    make_folder(config.out, "--out")
    print(data)
    own, *others = (
        _evaluate(detector, threshold, tiles, data, config.split)
        for detector, threshold in zip(detectors, thresholds, strict=True)
    )
    print(f"\n{own.title}:\n{own.scores.table()}")
    _draw(config.out, own, tiles, data)
    baseline = others[0].scores if others else None
    _write(config, own.threshold, own.scores, baseline)
    return _compare(config, own.scores, baseline) if baseline else 0


def _evaluate(
    detector: LoadedDetector, threshold: float | None, tiles: Sequence[Tile], data: AnnotatedData, split: str
) -> Evaluation:
    if detector.mpp != data.mpp:
        print(f"note: for {detector.path} images are resampled from {data.mpp:g} to {detector.mpp:g} um/px")
    rule = "paper's rule" if threshold is None else f"threshold {threshold:g}"
    title = f"{detector.path} on {split}, within {data.radius_um:g} um, {rule}"
    found = predict_tiles(detector, tiles, data.mpp)
    cells = [each.cells(threshold) for each in found]
    return Evaluation(title, threshold, found, cells, score_tiles(tiles, cells, data))


def _draw(out: Path, evaluation: Evaluation, tiles: Sequence[Tile], data: AnnotatedData) -> None:
    """Write the pictures."""
    curves = tile_curves(tiles, [each.cells(FLOOR) for each in evaluation.found], data)
    _save(comparison_sheet(tiles, evaluation.cells, data.classes), out / "comparison.png")
    picture = precision_recall_picture(curves, evaluation.scores, evaluation.title)
    _save(picture, out / "precision_recall.png")


def _save(picture: Image.Image, path: Path) -> None:
    with own_path(path) as temporary:
        picture.save(temporary, format="PNG")


def check(config: EvaluateConfig) -> None:
    """Validate the options.

    Raises:
        UserError: names the option and what it takes.
    """
    if config.min_gain is not None and config.baseline is None:
        raise UserError("--min-gain needs a detector to compare with; give it with --baseline")
    validate(config)


def _write(config: EvaluateConfig, threshold: float | None, scores: Scores, baseline: Scores | None) -> None:
    result = {
        "threshold": threshold,
        "config": as_plain(config),
        "scores": scores.as_dict(),
        "baseline": baseline and baseline.as_dict(),
        "provenance": provenance(),
    }
    with own_path(config.out / "scores.json") as temporary:
        write_json(temporary, result)
    print(f"\npictures: {config.out}/comparison.png, precision_recall.png\nscores: {config.out}/scores.json")


def _compare(config: EvaluateConfig, scores: Scores, baseline: Scores) -> int:
    """Print the gain over the baseline; returns 1 if it is below --min-gain."""
    gain = scores.macro_f1 - baseline.macro_f1
    print(f"\n{config.baseline} on the same tiles:\n{baseline.table()}")
    print(f"\nmacro F1 {scores.macro_f1:.3f} against {baseline.macro_f1:.3f}: gain {gain:+.3f}")
    if config.min_gain is not None and not gain >= config.min_gain:
        print(f"the gain is below --min-gain {config.min_gain:g}")
        return 1
    return 0


if __name__ == "__main__":
    run(lambda: evaluate(parse(EvaluateConfig, "python -m finetune.evaluate")))
