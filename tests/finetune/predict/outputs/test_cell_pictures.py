"""Pictures of what was found: drawn regions show as lines, in their place."""

import numpy as np
import shapely
from PIL import Image

from finetune.predict.outputs.cell_files import Rows
from finetune.predict.outputs.cell_pictures import DENSITY_SIDE, REGION_SIDE, Painter
from finetune.predict.search.area import Area, Everywhere, Regions
from shared.wsi.image_source import Picture

SOURCE = Picture(Image.new("RGB", (1280, 1280), (128, 128, 128)), 0.5)
SQUARE = shapely.box(200, 300, 600, 700)


def painter(area: Area) -> Painter:
    cell = Rows(np.array([[400.0, 500.0]]), 0.5, np.array([0]), np.array([0.9]), np.array([0]))
    return Painter(SOURCE, lambda: [cell], (0, 0), ("a",), area)


def dark(sheet: Image.Image, side: int) -> np.ndarray:
    """Where the first picture of a sheet is as dark as a line: (N, 2) x, y of px, from its corner."""
    top = 18 + 6  # the title
    picture = np.asarray(sheet.convert("L"))[top : top + side, :side]
    return np.argwhere(picture < 40)[:, ::-1]


def test_drawn_regions_show_as_lines() -> None:
    drawn = painter(Regions([SQUARE], SOURCE))
    line_N2 = dark(drawn.density_sheet(), DENSITY_SIDE)  # of half a px of the image each
    assert line_N2.min(axis=0).tolist() == [100, 150] and line_N2.max(axis=0).tolist() == [299, 349]
    assert len(line_N2) == 200**2 - 196**2
    sheet = drawn.region_sheet()  # 512 px from (0, 0) on, where the cell lies; the rest of the square is beyond it
    assert sheet is not None
    line_N2 = dark(sheet, REGION_SIDE)
    assert np.abs(line_N2.min(axis=0) * 512 / REGION_SIDE - (200, 300)).max() < 2
    assert (line_N2.max(axis=0) == REGION_SIDE - 1).all()
    assert len(line_N2) < 2.2 * 2 * REGION_SIDE  # along two sides, and not along the picture's
    assert not len(dark(painter(Everywhere(SOURCE)).density_sheet(), DENSITY_SIDE))
