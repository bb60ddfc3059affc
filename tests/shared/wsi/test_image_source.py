"""Plain images as sources: edges, transparency, what is refused; in memory and from files alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.wsi.image_source import Picture
from shared.wsi.slide import SlideError


@pytest.mark.parametrize("mpp", [0.2, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("corner", [(0.0, 0.0), (-20.0, -13.7), (37.3, 50.0)])
def test_edges_stay_whole_and_what_lies_outside_is_white(mpp: float, corner: tuple[float, float]) -> None:
    """Of a black image each px of the result that shows some of it is black."""
    picture, scale = Picture(Image.new("RGB", (100, 81)), 0.25), mpp / 0.25
    read_HW3 = np.asarray(picture.read(*corner, 160, 150, mpp))
    start_W, start_H = (first + np.arange(count) * scale for first, count in zip(corner, (160, 150), strict=True))
    black_W, black_H = (
        (start + scale > 1e-6) & (start < side - 1e-6)
        for start, side in zip((start_W, start_H), picture.size, strict=True)
    )
    assert (read_HW3 == np.where(black_H[:, None] & black_W, 0, 255)[..., None]).all()
    assert not np.asarray(picture.overview(mpp)).any()


def test_an_edge_is_resampled_from_what_is_there() -> None:
    """As Pillow does it for an image whose size is whole px of the result."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8))
    read = Picture(image, 0.25).read(0, 0, 60, 40, 0.5)
    assert (np.asarray(read) == np.asarray(image.resize((60, 40), Image.Resampling.BICUBIC))).all()


def test_transparent_px_are_white(tmp_path: Path) -> None:
    pixels_HW4 = np.zeros((8, 8, 4), np.uint8)
    pixels_HW4[:, 4:, 3] = 255
    Image.fromarray(pixels_HW4).save(tmp_path / "a.png")
    Image.fromarray(pixels_HW4).convert("LA").save(tmp_path / "grey.png")
    for name in ("a.png", "grey.png"):
        read_HW3 = np.asarray(Picture.open(tmp_path / name, 0.5).read(0, 0, 8, 8, 0.5))
        assert (read_HW3[:, :4] == 255).all() and not read_HW3[:, 4:].any()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_other_than_8_bits_are_refused(dtype: type, tmp_path: Path) -> None:
    image = Image.fromarray(np.full((8, 8), 3000, dtype))
    image.save(tmp_path / "a.tif")
    with pytest.raises(SlideError, match=f"image has pixels of mode {image.mode}; write it as an 8-bit RGB image"):
        Picture(image, 0.5)
    with pytest.raises(SlideError, match=r"a\.tif has pixels of mode"):
        Picture.open(tmp_path / "a.tif", 0.5)


def test_a_very_large_image_is_not_called_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (1400, 1300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900_000)
    with pytest.raises(SlideError, match=r"a\.png is too large for a plain image; write it as a tiled TIFF"):
        Picture.open(tmp_path / "a.png", 0.5)
