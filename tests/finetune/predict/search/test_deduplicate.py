"""Seams: what two tiles say about one place, and that a real network's result does not show its tiles."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.predict.in_memory import cells_of
from finetune.predict.search.deduplicate import BORDER, INNER, OVERLAP, without_seams
from finetune.predict.search.inference import CELL
from finetune.predict.search.tiling import tiling_of
from shared.model.decoders import Detections
from shared.model.detector_file import LoadedDetector
from shared.wsi.image_source import Picture
from tests.benchmarks.seams import agreement
from tests.conftest import Command
from tests.finetune.predict import planted

A, B = 0, 1


def reports(*rows: tuple[float, float, int, int]) -> np.ndarray:
    """Return records of (x, probability, tile, zone)."""
    cells, tiles = np.zeros(len(rows), CELL), {row[2] for row in rows}
    for cell, (x, probability, tile, zone) in zip(cells, rows, strict=True):
        cell["x"], cell["y"], cell["probability"], cell["tile"], cell["zone"] = x, 50.0, probability, tile, zone
        cell["owner"] = (
            sum(tiles) - tile if zone == OVERLAP and len(tiles) == 2 else 2 if zone == OVERLAP else tile
        )
    return cells


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # Both tiles see both proposals: two cells, however close.
        (
            [(99, 0.9, A, BORDER), (101, 0.8, B, BORDER), (101.1, 0.8, A, OVERLAP), (98.9, 0.9, B, OVERLAP)],
            [99, 101],
        ),
        # Each tile sees only its own: one cell, the more probable.
        ([(99, 0.8, A, BORDER), (101, 0.9, B, BORDER)], [101]),
        # One of them sees both: they do not agree that there are two.
        ([(99, 0.9, A, BORDER), (101, 0.8, B, BORDER), (101.1, 0.8, A, OVERLAP)], [99]),
        # Each sees only the other's: nobody would keep it.
        ([(101, 0.6, A, OVERLAP), (99, 0.7, B, OVERLAP)], [99]),
        # Two tiles' reports of a proposal of a third, which sees no cell there.
        ([(101, 0.6, A, OVERLAP), (101, 0.7, B, OVERLAP), (300, 0.9, 2, INNER)], [300]),
        # A witness alone is not believed; its proposal's owner sees no cell.
        ([(101, 0.6, A, OVERLAP)], []),
        # Witnesses do not add to a cell that is kept.
        ([(100, 0.6, A, BORDER), (101, 0.6, A, OVERLAP), (99, 0.7, B, OVERLAP)], [100]),
        # Too far apart to be one; inner cells are not looked at; within a tile nothing is merged.
        ([(95, 0.9, A, BORDER), (101, 0.9, B, BORDER)], [95, 101]),
        ([(99, 0.8, A, INNER), (101, 0.9, B, INNER)], [99, 101]),
        ([(99, 0.8, A, BORDER), (100, 0.9, A, BORDER)], [99, 100]),
        # Three tiles' reports in a row: the closest two are one, and what is left of them is compared further.
        ([(98, 0.7, A, BORDER), (100, 0.6, B, BORDER), (100.5, 0.9, 2, BORDER)], [100.5]),
    ],
)
def test_what_two_tiles_say(cells: list[tuple[float, float, int, int]], expected: list[float]) -> None:
    for rows in (cells, cells[::-1]):  # symmetric in the order
        kept = reports(*rows)
        assert sorted(kept["x"][without_seams(kept, mpp=0.5)].tolist()) == expected
    swapped = [
        (x, probability, 3 - tile, zone) for x, probability, tile, zone in cells
    ]  # and in the tiles' numbers
    kept = reports(*swapped)
    assert sorted(kept["x"][without_seams(kept, mpp=0.5)].tolist()) == expected


def test_cells_on_seams_are_found_once() -> None:
    """Squares exactly on the seams, where points and proposals fall on different sides."""
    image = planted.plant(640, 640, mpp=0.5, share=1.0)
    detector = planted.detector()
    tiling = tiling_of((640, 640), detector.network.config, tile=192, margin=64)
    cells = cells_of(detector, Picture(image.image, 0.5), tiling, batch_size=3)
    points_N2 = np.stack([cells["x"], cells["y"]], axis=1)
    assert len(cells) == len(image.labels_N)
    assert planted.near(points_N2, [planted.CLASSES[label] for label in cells["label"]]) == image.set()


class Contextual(planted.SquareNetwork):
    """Finds squares where there are few others within 64 px, and so sees how close the window's border is."""

    def forward(self, image_BCHW: torch.Tensor) -> Detections:
        found = super().forward(image_BCHW)
        ink_B1HW = 1 - (image_BCHW.float() / 255).mean(1, keepdim=True)
        for kernel, padding in (((129, 1), (64, 0)), ((1, 129), (0, 64))):
            ink_B1HW = torch.nn.functional.avg_pool2d(ink_B1HW, kernel, 1, padding)
        x_N, y_N = found.proposals_N2.long().unbind(-1)
        background_BN = 3 + 85 * ink_B1HW[:, 0, y_N, x_N]
        logits_BNC = torch.cat([found.logits_BNC[..., :2], background_BN[..., None]], -1)
        return found._replace(logits_BNC=logits_BNC)


def test_the_result_does_not_depend_on_the_tiles() -> None:
    """All cells agree with a margin as wide as what the network sees; with none far fewer do."""
    image = planted.plant(704, 640, mpp=0.5, share=0.4)
    detector = dataclasses.replace(planted.detector(), network=Contextual())
    source, config = Picture(image.image, 0.5), detector.network.config
    whole = cells_of(detector, source, tiling_of((704, 640), config))
    assert 0.2 < len(whole) / len(image.labels_N) < 0.8
    for tile, margin, size in ((512, 128, 1), (384, 128, 2), (192, 64, 3)):
        tiled = agreement(
            whole, cells_of(detector, source, tiling_of((704, 640), config, None, tile, margin), size)
        )
        assert (tiled.agree, tiled.doubled) == (1.0, 0)
    careless = agreement(whole, cells_of(detector, source, tiling_of((704, 640), config, None, 128, 0)))
    assert careless.agree < 0.9


@pytest.mark.slow
def test_a_trained_network_does_not_show_its_tiles(command: Command, real_data: Path, tmp_path: Path) -> None:
    """99.5 % of cells within 1 px, none doubled; of a longer training and 4096 x 4096 px: benchmarks/seams.csv."""
    init = real_data / "weights/resnet50_imagenet_v1.safetensors"
    words = ("--init", init, "--data", real_data / "CoNSeP", "--batch-size", 2, "--max-steps", 120)
    done = command("finetune", "demo", *words, "--evaluate-every", 99, "--warmup-steps", 5, timeout=1200)
    assert done.returncode == 0, done.stderr
    detector = LoadedDetector.load(tmp_path / "detector.pth")
    config = detector.network.config
    mosaic = Image.new("RGB", (1024, 1024), "white")  # of four fields, as the detector knows them
    for number, corner in enumerate(((0, 0), (500, 0), (0, 500), (500, 500)), 1):
        with Image.open(real_data / f"CoNSeP/test/images/test_{number}.png") as field:
            mosaic.paste(field, corner)
    source = Picture(mosaic, 0.5)
    whole = cells_of(detector, source, tiling_of((1024, 1024), config))
    assert len(whole) > 500
    for tile in (512, 768):
        tiled = agreement(whole, cells_of(detector, source, tiling_of((1024, 1024), config, None, tile)))
        assert tiled.agree >= 0.995
        assert tiled.doubled == 0
