"""Cells that are where we put them: red and blue squares on white, and a network that sees nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import Detector
from shared.model.cells import DetectedCells
from shared.model.decoders import Detections
from shared.model.dpa_p2pnet import DetectorConfig
from shared.model.proposals import proposal_grid
from shared.samples.pyramidal_tiff import write_pyramid
from shared.samples.sample_slides import jpeg_level

CLASSES = ("red", "blue")
CELL = 8  # px of the detector: one square in each cell of its grid, at most
MPP = 0.5


class SquareNetwork(nn.Module):
    """Finds the coloured square in each 8 x 8 px cell of the image; looks no further."""

    def __init__(self, views: int = 1, after: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.config = DetectorConfig(arch="resnet50", classes=2, interval=CELL, views=views)
        self.after = after
        """Called for each batch."""

    def forward(self, image_BCHW: Tensor) -> Detections:
        self.after()
        image_BCHW = image_BCHW.float() / 255
        own_BCHW = image_BCHW[:, -1] if self.config.views > 1 else image_BCHW
        height, width = own_BCHW.shape[-2:]
        padded = nn.functional.pad(own_BCHW, (0, -width % CELL, 0, -height % CELL), value=1.0)
        red, green, blue = padded.unbind(1)
        weights = (torch.stack([red, blue], 1) - green[:, None] - 0.5).clamp(min=0)
        cells = weights.unfold(2, CELL, CELL).unfold(3, CELL, CELL).flatten(4).flatten(2, 3)  # B x 2 x N x 64
        mass_BN2 = cells.sum(-1).transpose(1, 2)
        total_BNP = cells.sum(1)
        at = torch.arange(CELL, device=padded.device) + 0.5
        y_P, x_P = torch.meshgrid(at, at, indexing="ij")
        corners = torch.stack(
            torch.meshgrid(
                torch.arange(padded.shape[3] // CELL), torch.arange(padded.shape[2] // CELL), indexing="xy"
            ),
            -1,
        ).flatten(0, 1)
        inside = torch.stack([(total_BNP * x_P.flatten()).sum(-1), (total_BNP * y_P.flatten()).sum(-1)], -1)
        points_BN2 = corners * CELL + inside / total_BNP.sum(-1, keepdim=True).clamp(min=1e-6)
        proposals_N2 = proposal_grid(padded.shape[2], padded.shape[3], CELL).flatten(0, 1)
        logits_BNC = torch.cat([mass_BN2, torch.full_like(mass_BN2[..., :1], 3.0)], -1)
        return Detections(proposals_N2, proposals_N2.expand_as(points_BN2), points_BN2, logits_BNC)

    def detect(self, image_BCHW: Tensor, threshold: float | None = None) -> list[DetectedCells]:
        return self(image_BCHW).cells(threshold)


def detector(
    tile: int | None = None,
    views: int = 1,
    after: Callable[[], None] = lambda: None,
    path: Path = Path("detector.pth"),
) -> Detector:
    network = SquareNetwork(views, after)
    return Detector(path, network, CLASSES, MPP, torch.device("cpu"), tile)


@dataclass(frozen=True)
class Planted:
    """An image of `mpp` um/px and its cells in px of it."""

    image: Image.Image
    mpp: float
    points_N2: np.ndarray
    labels_N: np.ndarray

    def set(self, offset: tuple[float, float] = (0, 0)) -> set[tuple[int, int, str]]:
        """As `near` gives them."""
        return near(self.points_N2 + offset, [CLASSES[label] for label in self.labels_N])


def near(points_N2: np.ndarray, names: list[str]) -> set[tuple[int, int, str]]:
    """Where cells are, give or take less than a pixel: squares stand on every second one."""
    return {(round(x / 2), round(y / 2), name) for (x, y), name in zip(points_N2, names, strict=True)}


def plant(width: int, height: int, mpp: float = 0.25, share: float = 0.3, seed: int = 0) -> Planted:
    """Squares in a random share of the cells that lie wholly in an image."""
    random = np.random.default_rng(seed)
    side = round(CELL * MPP / mpp)
    pixels = np.full((height, width, 3), 255, np.uint8)
    points, labels = [], []
    for row in range(height // side):
        for column in range(width // side):
            if random.random() > share:
                continue
            # On every second px, a little off the middle of the cell.
            x, y = (int(side * place + side / 2 + 2 * random.integers(-1, 2)) for place in (column, row))
            half, label = max(2, side // 4), int(random.integers(2))
            pixels[y - half : y + half, x - half : x + half] = (255, 0, 0) if label == 0 else (0, 0, 255)
            points.append((x, y))
            labels.append(label)
    return Planted(Image.fromarray(pixels), mpp, np.array(points, float).reshape(-1, 2), np.array(labels, int))


def write_leica(
    path: Path, image: Image.Image, mpp: float, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    """Write a Leica SCN file: an area scanned at `corner` of a slide of `size` px; OpenSlide gives it bounds."""
    nm = round(mpp * 1000)
    small = image.reduce(4)

    def part(
        name: str, view: tuple[int, int], at: tuple[int, int], levels: list[tuple[Image.Image, int]], power: int
    ):
        dimensions = "".join(
            f'<dimension sizeX="{level.width}" sizeY="{level.height}" r="{r}" ifd="{ifd}"/>'
            for r, (level, ifd) in enumerate(levels)
        )
        first = levels[0][0]
        return (
            f'<image name="{name}" uuid="{power}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            '<device model="Leica SCN400" version="1.0"/>'
            f'<pixels sizeX="{first.width}" sizeY="{first.height}">{dimensions}</pixels>'
            f'<view sizeX="{view[0] * nm}" sizeY="{view[1] * nm}" offsetX="{at[0] * nm}" offsetY="{at[1] * nm}" '
            f'spacingZ="0"/><scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings>'
            "<illuminationSettings><numericalAperture>0.7</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="0" sizeX="{size[0] * nm}" sizeY="{size[1] * nm}">'
        + part("macro", size, (0, 0), [(small, 2)], 1)
        + part("main", image.size, corner, [(image, 0), (small, 1)], 40)
        + "</collection></scn>"
    )
    levels = [jpeg_level(each, quality=95) for each in (image, small, small)]
    write_pyramid(path, levels, description, 1e4 / mpp)
