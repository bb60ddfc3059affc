"""`python -m finetune.datasets suggest`: regions of slides to correct in QuPath, with their predicted cells."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from finetune.predict.outputs.cell_files import colour_of
from finetune.review.candidate_regions import Candidate, find_candidates
from finetune.review.choice import choose
from finetune.review.config import Suggest, check
from finetune.scoring.operating_point import resolve_threshold
from shared.annotations.polygons import PolygonIndex, merge
from shared.annotations.qupath import REGION_CLASS, Objects, read_regions
from shared.annotations.slide_annotations import annotation_for
from shared.cli import make_folder
from shared.errors import NOTHING_FAILED, SOME_FAILED
from shared.files import atomic_path
from shared.model.detector_file import LoadedDetector
from shared.training.gpu_usage import ON_CPU, explain_out_of_memory
from shared.wsi.image_source import ImageSource, bounds_corner, find_sources, open_source, require_fine
from shared.wsi.slide import SlideError

REGION_COLOUR = (255, 200, 0)
Feature = dict[str, Any]


@dataclass
class Chosen:
    """Regions chosen so far."""

    looks_KD: np.ndarray
    slides: int = 0
    cells: int = 0


def suggest(config: Suggest, is_drawn: Callable[[Path], bool] = lambda _: False) -> int:
    """Write the suggestions of all slides; returns 0, or 3 if some slides cannot be read.

    Args:
        config: Detector, slides and regions.
        is_drawn: Recognises pictures drawn by a prediction, which are no slides.

    Raises:
        UserError: an option makes no sense, the detector cannot be used, or annotations cannot be read; nothing is
            written then.
    """
    check(config)
    detector = LoadedDetector.load(config.detector)
    threshold = resolve_threshold(config.threshold, detector)
    sources = find_sources(config.slides, is_drawn)
    annotated = {name: _annotated(config, name, len(sources) > 1) for name in sources.values()}
    make_folder(config.out, "--out")
    chosen, failed = Chosen(np.empty((0, 0), np.float32)), 0
    for path, name in tqdm(sources.items(), unit="slide"):
        try:
            with explain_out_of_memory(ON_CPU), closing(open_source(path, config.slide_mpp)) as source:
                require_fine(source, detector.mpp)
                corner = bounds_corner(source) if config.bounds else (0, 0)
                known = _index(annotated[name], corner)
                regions = _choose_in(source, known, detector, config, chosen)
            features, cells = _features(regions, detector.classes, threshold, corner)
            _write(config.out / f"{name}.geojson", features)
            chosen.cells += cells
        except SlideError as error:
            failed += 1
            tqdm.write(f"failed: {error}", file=sys.stderr)
    print(
        f"{config.out}: {len(chosen.looks_KD)} regions of {chosen.slides} slides, {chosen.cells:,} predicted cells"
    )
    if chosen.slides:
        print(
            f"correct them in QuPath, export to corrected/NAME.geojson, then:\n{_next_command(config, detector)}"
        )
    return SOME_FAILED if failed else NOTHING_FAILED


def _annotated(config: Suggest, name: Path, several: bool) -> Objects | None:
    """Read the regions of a slide that are annotated already."""
    given = annotation_for(config.annotated, name, several, "annotated")
    return read_regions(given) if given else None


def _index(annotated: Objects | None, corner: tuple[int, int]) -> PolygonIndex | None:
    """Index the regions by px of level 0."""
    regions = annotated.shifted(*corner).regions if annotated else []
    return PolygonIndex(merge([each.polygon for each in regions])) if regions else None


def _choose_in(
    source: ImageSource, annotated: PolygonIndex | None, detector: LoadedDetector, config: Suggest, chosen: Chosen
) -> list[Candidate]:
    """Choose the regions of one slide, unlike those chosen so far."""
    candidates = find_candidates(detector, source, config, annotated)
    if not candidates:
        raise SlideError(f"{source.path} has no region left to suggest; lower --side-um, or leave it out")
    looks_ND = np.stack([each.look_D for each in candidates])
    known_KD = chosen.looks_KD if len(chosen.looks_KD) else looks_ND[:0]
    uncertainty_N = np.array([each.uncertainty for each in candidates])
    best = choose(uncertainty_N, looks_ND, config.per_slide, known_KD)
    chosen.looks_KD = np.concatenate([known_KD, looks_ND[best]])
    chosen.slides += 1
    return [candidates[index] for index in best]


def _features(
    candidates: Sequence[Candidate], classes: Sequence[str], threshold: float | None, corner: tuple[int, int]
) -> tuple[list[Feature], int]:
    """Make rectangles, and a set of points for each class, which QuPath edits; returns the cells' number, too."""
    rectangles = [_rectangle(each, number, corner) for number, each in enumerate(candidates, 1)]
    cells = [each.cells(threshold) for each in candidates]
    points_N2 = np.concatenate([each.points_N2 for each in cells]) - corner
    labels_N = np.concatenate([each.labels_N for each in cells])
    sets = list(_point_sets(points_N2, labels_N, classes))
    return [*rectangles, *sets], len(labels_N)


def _rectangle(candidate: Candidate, number: int, corner: tuple[int, int]) -> Feature:
    left, top, right, bottom = (side - corner[axis % 2] for axis, side in enumerate(candidate.box))
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[round(x, 2), round(y, 2)] for x, y in ring]]},
        "properties": {
            "objectType": "annotation",
            "name": f"suggestion {number}",
            "classification": {"name": REGION_CLASS, "color": REGION_COLOUR},
            "isLocked": True,
            "measurements": {"Expected errors": round(candidate.uncertainty, 2)},
        },
    }


def _point_sets(points_N2: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> Iterator[Feature]:
    for label, name in enumerate(classes):
        if len(of_class_M2 := points_N2[labels_N == label]):
            yield {
                "type": "Feature",
                "geometry": {"type": "MultiPoint", "coordinates": of_class_M2.round(2).tolist()},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name, "color": colour_of(label)},
                },
            }


def _write(path: Path, features: Sequence[Feature]) -> None:
    with atomic_path(path) as temporary:
        content = {"type": "FeatureCollection", "features": list(features)}
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _next_command(config: Suggest, detector: LoadedDetector) -> str:
    slides = str(config.slides[0])
    if len(config.slides) > 1:
        slides = os.path.commonpath([path.absolute() for path in config.slides])
    words = ["python", "-m", "finetune.datasets", "import", "corrected", "--slides", slides]
    words += ["--out", "data2", "--mpp", f"{detector.mpp:g}", "--classes", *detector.classes]
    words += [] if config.slide_mpp is None else ["--slide-mpp", f"{config.slide_mpp:g}"]
    words += [] if config.bounds else ["--no-bounds"]
    return shlex.join(words)
