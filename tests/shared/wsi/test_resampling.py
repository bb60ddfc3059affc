"""Fast resampling beside Pillow's."""

import numpy as np
import pytest
from PIL import Image

from shared.samples.specimen import section
from shared.wsi import resampling

# Side of the result, and what is shown in it: enlarged, moved, shrunk a little and a lot.
CASES = [
    (512, (2.0, 2.0, 489.0, 489.0)),
    (512, (2.3, 3.7, 514.3, 515.7)),
    (512, (2.25, 2.5, 566.0, 566.3)),
    (256, (0.0, 0.0, 600.0, 600.0)),
    (37, (0.0, 0.0, 600.0, 600.0)),
]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(section(4, 150.0, 150.0).render(0.25))


@pytest.mark.parametrize(("side", "box"), CASES)
def test_as_pillow_does_it(picture, side, box):
    ours = np.asarray(resampling.resample(np.asarray(picture), (side, side), box), int)
    theirs = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box), int)
    assert np.abs(ours - theirs).max() <= 2
    assert (ours != theirs).mean() < 0.02


def test_width_and_height_are_not_mixed_up(picture):
    ours = np.asarray(resampling.resample(np.asarray(picture), (300, 200), (10.0, 50.0, 400.0, 250.5)), int)
    theirs = np.asarray(picture.resize((300, 200), Image.Resampling.BICUBIC, (10.0, 50.0, 400.0, 250.5)), int)
    assert ours.shape == (200, 300, 3)
    assert np.abs(ours - theirs).max() <= 2


def test_every_processor_gives_the_same(picture):
    """Instruction sets one after another; bytes of shards must not depend on the machine."""
    fast = pytest.importorskip("cykooz_resizer")
    options = fast.ResizeOptions(resize_alg=fast.ResizeAlg.convolution(fast.FilterType.catmull_rom))
    found = set()
    for extensions in fast.CpuExtensions:
        resizer, result = fast.Resizer(), fast.ImageData(570, 640, fast.PixelType.U8x3)
        resizer.cpu_extensions = extensions
        resizer.resize(fast.ImageData(600, 600, fast.PixelType.U8x3, picture.tobytes()), result, options)
        found.add(result.get_buffer())
    assert len(found) == 1


def test_without_the_package_pillow_does_it(picture, monkeypatch):
    monkeypatch.setattr(resampling, "fast", None)
    ours = resampling.resample(np.asarray(picture), (64, 64), (1.5, 2.0, 100.0, 101.0))
    theirs = picture.resize((64, 64), Image.Resampling.BICUBIC, (1.5, 2.0, 100.0, 101.0))
    np.testing.assert_array_equal(ours, np.asarray(theirs))
    ours = resampling.shrink(np.asarray(picture), (60, 90))
    np.testing.assert_array_equal(ours, averages_of_areas(picture, (60, 90)))


def averages_of_areas(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Columns first, rounded before the rows follow."""
    columns = picture.resize((picture.width, size[1]), Image.Resampling.BOX)
    return np.asarray(columns.resize(size, Image.Resampling.BOX))


@pytest.mark.parametrize("size", [(150, 150), (150, 300), (200, 100), (149, 37), (1, 1)])
def test_averages_of_areas_as_pillow_takes_them(picture, size):
    ours = resampling.shrink(np.asarray(picture), size)
    theirs = averages_of_areas(picture, size)
    assert ours.shape == theirs.shape
    most = 0 if set(size) <= {150, 300} else 1  # shares of 1/2 and 1/4 are not rounded
    assert np.abs(ours.astype(int) - theirs).max() <= most
