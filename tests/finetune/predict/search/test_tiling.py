"""Tiles: cores that cover an image once, windows on the detector's grids, wider views around them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from finetune.predict.search.inference import read_views
from finetune.predict.search.tiling import Tiling, note_on_margin, tiling_of
from shared.errors import UserError
from shared.model.dpa_p2pnet import DetectorConfig
from shared.wsi.image_source import Picture

RESNET = DetectorConfig(arch="resnet50", interval=8)
VIT = DetectorConfig(arch="vit_base_patch16_224", interval=16)


@pytest.mark.parametrize("size", [(1500, 800), (1025, 1024), (2000, 40)])
def test_cores_cover_every_pixel_once_and_windows_lie_on_the_grids(size: tuple[int, int]) -> None:
    for tiling in (tiling_of(size, RESNET, tile=512), tiling_of(size, VIT, trained_tile=448)):
        covered = np.zeros((size[1] + 1024, size[0] + 1024), int)
        for index in range(len(tiling)):
            left, top, right, bottom = tiling.core_of(index)
            covered[top:bottom, left:right] += 1
            window = tiling.window_of(index)
            assert window[0] % 64 == window[1] % 64 == 0
            assert (window[2] - window[0]) % 64 == (window[3] - window[1]) % 64 == 0
            assert window[0] <= max(0, left - 64) and window[1] <= max(0, top - 64)
        assert (covered[: size[1], : size[0]] == 1).all()


def test_an_image_no_larger_than_a_tile_is_seen_in_one_piece_of_its_own_size() -> None:
    tiling = tiling_of((500, 333), RESNET)
    assert (len(tiling), tiling.window_of(0), tiling.core_of(0)) == (1, (0, 0, 500, 333), (0, 0, 500, 333))


def test_an_image_that_ends_within_a_px_is_covered() -> None:
    tiling = tiling_of((251.5, 100.2), RESNET)
    assert tiling.window_of(0) == tiling.core_of(0) == (0, 0, 252, 101)
    assert tiling_of((1024.5, 100), RESNET).window_of(1) == (640, 0, 1088, 128)


def test_windows_of_a_fixed_tile_all_have_its_size() -> None:
    tiling = tiling_of((1000, 300), VIT, trained_tile=448)
    sizes = {(box[2] - box[0], box[3] - box[1]) for box in map(tiling.window_of, range(len(tiling)))}
    assert sizes == {(448, 448)} and tiling.core == 320
    small = tiling_of((300, 200), VIT, trained_tile=448)
    assert (len(small), small.window_of(0), small.core_of(0)) == (1, (0, 0, 448, 448), (0, 0, 448, 448))


def test_batches_hold_windows_of_one_size_and_every_tile_once() -> None:
    tiling = tiling_of((3000, 2000), RESNET, tile=512)
    batches = tiling.batches(range(len(tiling)), 4)
    assert sorted(index for batch in batches for index in batch) == list(range(len(tiling)))
    for batch in batches:
        assert len({tuple(np.subtract(tiling.window_of(i)[2:], tiling.window_of(i)[:2])) for i in batch}) == 1
    assert max(map(len, batches)) == 4 and sum(len(batch) < 4 for batch in batches) <= 9


def test_other_intervals_meet_on_coarser_steps() -> None:
    tiling = tiling_of((3000, 2000), dataclasses.replace(RESNET, interval=12))
    assert tiling.step == 192 and tiling.tile % 192 == tiling.margin % 192 == 0
    with pytest.raises(UserError, match="--tile 1024 is no multiple of 192 px"):
        tiling_of((10, 10), dataclasses.replace(RESNET, interval=12), tile=1024)


def test_every_detector_has_a_default_tile_with_a_core() -> None:
    for interval in range(1, 65):
        tiling = tiling_of((20_000, 100), dataclasses.replace(RESNET, interval=interval))
        assert tiling.core >= 512 and tiling.margin >= 128
        assert tiling.tile % tiling.step == tiling.margin % tiling.step == 0


def test_margins_that_change_more_than_a_hundredth_of_the_cells_are_named() -> None:
    """The figures are those of tests/benchmarks/seams.csv."""
    small, large = (DetectorConfig(arch=arch, interval=8) for arch in ("regnetx_002", "resnet50"))
    assert tiling_of((1, 1), small).margin == 192
    assert note_on_margin(small, tiling_of((1, 1), small, margin=128)).endswith("leave out --margin")
    assert not note_on_margin(small, tiling_of((1, 1), small))
    assert not note_on_margin(large, tiling_of((1, 1), large, margin=64))
    assert note_on_margin(large, tiling_of((1, 1), large, margin=0))


def test_only_detectors_that_see_their_whole_tile_have_one() -> None:
    assert RESNET.tile(448) is None
    assert dataclasses.replace(RESNET, arch="regnetx_002").tile(256) is None
    assert VIT.tile(448) == 448
    assert VIT.tile(500) == 512
    assert dataclasses.replace(RESNET, views=2).tile(192) == 192
    with pytest.raises(UserError, match="--tile 1024 does not fit the detector, which was trained on 448 px"):
        tiling_of((10, 10), VIT, trained_tile=448, tile=1024)


def test_wider_views_show_more_around_the_same_centre() -> None:
    """Against a picture whose colour says where one is; white outside."""
    y_HW, x_HW = np.mgrid[:256, :256]
    pixels = np.stack([x_HW, y_HW, np.zeros_like(x_HW)], -1).astype(np.uint8)
    views_KHWC = read_views(Picture(Image.fromarray(pixels), 0.5), (64, 96, 128, 160), 0.5, views=3)
    assert views_KHWC.shape == (3, 64, 64, 3)
    assert (views_KHWC[2] == pixels[96:160, 64:128]).all()
    for view, factor in ((views_KHWC[1], 2), (views_KHWC[0], 4)):
        x_N = 96 + (np.arange(64) + 0.5 - 32) * factor - 0.5  # of the centre of each px, as a px index
        y_N = x_N + 32
        inside = [(values > 2.5 * factor) & (values < 255 - 2.5 * factor) for values in (x_N, y_N)]
        block = view[np.ix_(inside[1], inside[0])].astype(float)
        assert np.abs(block[..., 0] - x_N[inside[0]]).max() < 1
        assert np.abs(block[..., 1] - y_N[inside[1]][:, None]).max() < 1
    assert (views_KHWC[0][:, :6] == 255).all()  # 4 x 64 px around (96, 128) begin 32 px left of the picture


def test_tiles_are_counted_row_by_row() -> None:
    tiling = Tiling(1000, 600, tile=384, margin=64, step=64)
    assert (tiling.columns, tiling.rows, len(tiling)) == (4, 3, 12)
    assert tiling.core_of(5) == (256, 256, 512, 512)
    assert tiling.window_of(5) == (192, 192, 576, 576)
    assert tiling.window_of(11) == (704, 448, 1024, 640)
