"""`python -m tests.benchmarks.review_loop`: rounds of suggested regions beside random ones, as review_loop.csv.

On slides of sample tissue, annotated without errors, the shipped detector of nuclei learns two classes from two
random regions, suggests one region of each slide, goes on from itself with all annotated so far, and so on.
`uncertain` suggests by uncertainty alone. `f1` is the macro F1 on tiles of other slides, `cells` is how many were
annotated.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import shapely
import torch

from finetune.datasets import DataOptions, load_data
from finetune.datasets.import_qupath import Import, import_annotations
from finetune.predict.in_memory import predict_tiles
from finetune.recipes import NUCLEI
from finetune.review import suggest as review
from finetune.review.choice import choose
from finetune.review.config import Suggest
from finetune.scoring.tile_scores import score_tiles
from finetune.train import train
from finetune.training.augment import AugmentConfig
from shared.annotations.qupath import read_regions
from shared.files import write_json
from shared.model.detector_file import LoadedDetector
from shared.samples.sample_slides import write_slide, write_tiles
from shared.samples.specimen import Specimen, section
from shared.signals import StopSignal
from shared.training.distributed import World
from shared.weights.shipped import NUCLEI_FILE
from tests.benchmarks.measuring import write

OUT = Path(__file__).with_suffix(".csv")
SLIDES, ROUNDS, SEEDS, SIDE_UM, MPP = 6, 3, 2, 900.0, 0.5
IMAGES = 400
START = NUCLEI_FILE
CLASSES = ("negative", "positive")
# Annotated cells and F1 of every seed, by way and round.
Scores = dict[tuple[str, int], list[tuple[int, float]]]
Choose = Callable[[np.ndarray, np.ndarray, int, np.ndarray], list[int]]


def at_random(seed: int) -> Choose:
    """Make a choice that knows nothing of the candidates."""
    random = np.random.default_rng(seed)
    return lambda uncertainty_N, _looks, count, _known: random.permutation(len(uncertainty_N))[:count].tolist()


def by_uncertainty(uncertainty_N: np.ndarray, _looks: np.ndarray, count: int, _known: np.ndarray) -> list[int]:
    """Choose the most uncertain candidates, however alike."""
    return np.argsort(-uncertainty_N, kind="stable")[:count].tolist()


def main() -> None:
    """Run all ways with all seeds, and write their means after each seed."""
    scores: Scores = {}
    for seed in range(SEEDS):
        ways = {"random": at_random(seed), "uncertain": by_uncertainty, "suggested": choose}
        with tempfile.TemporaryDirectory() as folder, quiet():
            loop = Loop(Path(folder), seed)
            start = loop.begin()
            for way, chooser in ways.items():
                for number, result in enumerate([start, *loop.rounds(way, chooser)]):
                    scores.setdefault((way, number), []).append(result)
        write(OUT, rows_of(scores))


def rows_of(scores: Scores) -> list[dict[str, object]]:
    """Means over seeds, a row for each way and round."""
    rows: list[dict[str, object]] = []
    for (way, number), results in scores.items():
        cells, f1 = zip(*results, strict=True)
        rows.append(
            {
                "regions": way,
                "round": number,
                "annotated": 2 + number * SLIDES,
                "cells": round(float(np.mean(cells))),
                "f1": round(float(np.mean(f1)), 4),
                "f1_of_seeds": " ".join(f"{value:.4f}" for value in f1),
            }
        )
    return rows


@dataclasses.dataclass
class Loop:
    """Slides, tiles to score on, and the annotator who knows all cells."""

    folder: Path
    seed: int

    def __post_init__(self) -> None:
        self.specimens: dict[str, Specimen] = {}
        for index in range(SLIDES):
            name = f"slide-{index}"
            self.specimens[name] = section(100 * self.seed + index, SIDE_UM, SIDE_UM)
            write_slide(self.folder / "slides" / f"{name}.tif", self.specimens[name], MPP)
        write_tiles(self.folder / "tiles", tiles=(1, 1, 24), mpp=MPP, seed=1000 + self.seed)

    def begin(self) -> tuple[int, float]:
        """Train the detector that all ways start from; returns annotated cells and F1."""
        random = np.random.default_rng(self.seed)
        for name in list(self.specimens)[:2]:
            left, top = random.uniform(0, SIDE_UM / MPP - 256, 2)
            self.annotate(name, [shapely.box(left, top, left + 256, top + 256)], self.folder / "start" / name)
        return self.train(self.folder / "start", START, self.folder / "start.pth")

    def rounds(self, way: str, chooser: Choose) -> Iterator[tuple[int, float]]:
        """Yield annotated cells and F1 after each round."""
        corrected, detector = self.folder / way, self.folder / "start.pth"
        shutil.copytree(self.folder / "start", corrected)
        for number in range(1, ROUNDS + 1):
            suggested = self.folder / f"{way}-{number}"
            config = Suggest(
                detector=detector,
                slides=(self.folder / "slides",),
                out=suggested,
                per_slide=1,
                annotated=self.known(corrected),
                workers=0,
            )
            with patch.object(review, "choose", chooser):
                review.suggest(config)
            for path in suggested.glob("*.geojson"):
                boxes = [region.polygon for region in read_regions(path).regions]
                self.annotate(path.stem, boxes, corrected / f"{number}" / path.stem)
            before, detector = detector, self.folder / f"{way}-{number}.pth"
            yield self.train(corrected, before, detector)

    def known(self, corrected: Path) -> Path:
        """One file a slide with all regions annotated so far."""
        merged = corrected.with_name(f"{corrected.name}-known")
        merged.mkdir(exist_ok=True)
        for name in self.specimens:
            features = [
                feature
                for path in corrected.rglob(f"{name}.geojson")
                for feature in json.loads(path.read_text())["features"]
            ]
            write_json(merged / f"{name}.geojson", {"type": "FeatureCollection", "features": features})
        return merged

    def annotate(self, name: str, boxes: list[shapely.Polygon], stem: Path) -> None:
        """Write regions with all of their cells, as QuPath exports them."""
        points_N2, values_N = self.specimens[name].cells(MPP)
        inside_N = shapely.intersects_xy(shapely.union_all(boxes), points_N2)
        cells = zip(points_N2[inside_N].tolist(), values_N[inside_N].tolist(), strict=True)
        shapes = [(shapely.geometry.mapping(box), "Region*") for box in boxes]
        shapes += [({"type": "Point", "coordinates": point}, CLASSES[value - 1]) for point, value in cells]
        features = [
            {
                "type": "Feature",
                "geometry": shape,
                "properties": {"objectType": "annotation", "classification": {"name": kind}},
            }
            for shape, kind in shapes
        ]
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_json(stem.with_suffix(".geojson"), {"type": "FeatureCollection", "features": features})

    def train(self, corrected: Path, init: Path, out: Path) -> tuple[int, float]:
        """Train on all annotated regions; returns the number of their cells and F1 on the tiles."""
        data = out.with_suffix(".data")
        slides = self.folder / "slides"
        import_annotations(Import(annotations=corrected, slides=slides, out=data, classes=CLASSES))
        content = json.loads((data / "dataset.json").read_text())
        write_json(data / "dataset.json", {**content, "splits": {"train": list(content["slides"])}})
        recipe = dataclasses.replace(
            NUCLEI,
            init=str(init),
            arch=None,
            source=DataOptions(data=data),
            out=out,
            run_dir=out.with_suffix(".run"),
            epochs=None,
            images=IMAGES,
            warmup_steps=20,
            ema=0.98,
            workers=0,
            seed=self.seed,
            augment=AugmentConfig(crop=128),
        )
        train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal())
        cells = sum(len(tile.labels_N) for tile in load_data(recipe.source).splits["train"])
        test = load_data(DataOptions(data=self.folder / "tiles"))
        tiles = test.splits["test"]
        found = predict_tiles(LoadedDetector.load(out), tiles, test.mpp)
        return cells, score_tiles(tiles, [each.cells() for each in found], test).macro_f1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what the commands print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
