"""The pictures that are drawn in the beginning."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ssl_pretrain.crops import Crop
from ssl_pretrain.monitors import SHEET_SIDE, augmentation_sheet
from ssl_pretrain.shards import open_shards
from ssl_pretrain.views import Config, Views
from tests.ssl_pretrain.conftest import write_shards

LARGE, SMALL = Crop(size=32, scale=(0.2, 1.0), count=2), Crop(size=16, scale=(0.05, 0.2), blur=0.5)


def colour(number: int) -> Image.Image:
    """Shades of red."""
    return Image.new("RGB", (40, 40), (number * 100 + 8, 8, 8))


def cells(sheet: Image.Image, rows: int, columns: int) -> list[list[torch.Tensor]]:
    """The images of a sheet, row by row."""
    step_y = (sheet.height - 24) // rows
    corners = [[(x * (SHEET_SIDE + 4), 24 + y * step_y) for x in range(columns)] for y in range(rows)]
    pixels_CHW = torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
    return [[pixels_CHW[:, y : y + SHEET_SIDE, x : x + SHEET_SIDE] for x, y in row] for row in corners]


def test_sheet_has_a_row_for_each_patch_and_a_column_for_each_view(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [2, 1], colour))
    sheet = augmentation_sheet(shard_set, Views(Config(), (LARGE, SMALL), shard_set.mean, shard_set.std), 3)
    assert sheet.width == 4 * (SHEET_SIDE + 4)
    for row, images in enumerate(cells(sheet, rows=3, columns=4)):
        for image_CHW in images:
            expected_C = torch.tensor([row * 100 + 8, 8, 8]).float()
            assert (image_CHW.float().mean(dim=(1, 2)) - expected_C).abs().max() < 4


def test_sheet_shows_colours_as_they_are_varied(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [2], colour))
    gray = Views(Config(grayscale=1.0), (LARGE,), shard_set.mean, shard_set.std)
    for patch_CHW, *views in cells(augmentation_sheet(shard_set, gray, 2), rows=2, columns=3):
        brightness = patch_CHW.float().mean(dim=(1, 2)) @ torch.tensor([0.2989, 0.587, 0.114])
        for view_CHW in views:
            assert (view_CHW.float() - brightness).abs().max() < 4
