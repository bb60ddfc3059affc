"""Contact sheets of training: augmented tiles, proposals before and after deformation, comparisons."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from finetune.datasets.dataset import Tile
from shared.model.cells import Cells
from shared.reporting.pictures import contact_sheet, draw_lines, draw_points

ZOOM = 2


def annotated_sheet(
    samples_KHWC: Sequence[np.ndarray], cells: Sequence[tuple[np.ndarray, np.ndarray]], classes: Sequence[str]
) -> Image.Image:
    """Draw training images, wider fields of view first, with their annotated cells."""
    pictures = []
    for views_KHWC, (points_N2, labels_N) in zip(samples_KHWC, cells, strict=True):
        pictures += [_framed(view_HWC) for view_HWC in views_KHWC[:-1]]
        pictures.append(draw_points(_zoomed(views_KHWC[-1]), points_N2 * ZOOM, labels_N))
    views = len(samples_KHWC[0])
    title = "augmented training tiles with their cells"
    return contact_sheet(pictures, max(1, 4 // views) * views, side=448, title=title, legend=classes)


def proposals_sheet(
    image_HWC: np.ndarray, stages_3N2: Sequence[np.ndarray], labels_N: np.ndarray, classes: Sequence[str]
) -> Image.Image:
    """Draw proposals that became cells: on the grid | deformed | final points (the paper's Figure 2)."""
    image = _zoomed(image_HWC)
    proposals_N2, deformed_N2, points_N2 = stages_3N2
    before = draw_points(image, proposals_N2 * ZOOM, labels_N, radius=3, filled=True)
    moves = draw_lines(image, proposals_N2 * ZOOM, deformed_N2 * ZOOM, colour="#FFFFFF")
    after = draw_points(moves, deformed_N2 * ZOOM, labels_N, radius=3, filled=True)
    final = draw_points(image, points_N2 * ZOOM, labels_N, radius=3, filled=True)
    captions = ["on the grid", "deformed", "final points"]
    title = "proposals that became cells, before and after deformation"
    return contact_sheet([before, after, final], 3, captions, side=image.width, title=title, legend=classes)


def comparison_sheet(
    tiles: Sequence[Tile], predicted: Sequence[Cells], classes: Sequence[str], most: int = 6
) -> Image.Image:
    """Draw annotated | predicted cells side by side (the paper's Figure 4)."""
    panels, captions = [], []
    for tile, cells in list(zip(tiles, predicted, strict=True))[:most]:
        image = _zoomed(tile.read())
        panels.append(draw_points(image, tile.points_N2 * ZOOM, tile.labels_N, radius=5))
        panels.append(draw_points(image, cells.points_N2 * ZOOM, cells.labels_N, radius=5))
        captions += [f"{tile.image.name}: {len(tile.labels_N)} annotated", f"{len(cells.labels_N)} predicted"]
    return contact_sheet(panels, 4, captions, side=448, title="left annotated, right predicted", legend=classes)


def _framed(view_HWC: np.ndarray) -> Image.Image:
    """Frame the part of a wider field of view that the next one covers."""
    image = _zoomed(view_HWC)
    left, top, right, bottom = image.width / 4, image.height / 4, image.width * 3 / 4, image.height * 3 / 4
    corners_42 = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return draw_lines(image, corners_42, np.roll(corners_42, -1, axis=0), colour="#000000")


def _zoomed(image_HWC: np.ndarray) -> Image.Image:
    image = Image.fromarray(image_HWC)
    return image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.BICUBIC)
