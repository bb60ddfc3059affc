"""Images of every mode give training, prediction and the harvest's count check the same RGB."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from patch_extraction.count_check import annotated_squares
from shared.errors import UserError
from shared.wsi.image_source import Picture
from shared.wsi.rgb import open_rgb

RANDOM = np.random.default_rng(0)
RGB_HW3 = RANDOM.integers(0, 256, (40, 48, 3), np.uint8)
CLEAR_HW = np.arange(48) >= np.arange(40)[:, None]
COLOURS = Image.fromarray(RGB_HW3)


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(np.where(CLEAR_HW, 0, 255).astype(np.uint8)))
    return image


def keyed(image: Image.Image) -> bytes:
    """PNG whose colour 7 (or black) is transparent without an alpha channel."""
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=7 if image.mode == "P" else 0)
    return file.getvalue()


IMAGES: dict[str, Callable[[], Image.Image | bytes]] = {
    "RGB.png": lambda: COLOURS.copy(),
    "RGBA.png": lambda: with_alpha(COLOURS.copy()),
    "L.png": lambda: COLOURS.convert("L"),
    "LA.png": lambda: with_alpha(COLOURS.convert("L")),
    "P.png": lambda: COLOURS.quantize(16),
    "keyed P.png": lambda: keyed(COLOURS.quantize(16)),
    "keyed L.png": lambda: keyed(COLOURS.convert("L").point(lambda grey: grey // 128 * 128)),
    "1.png": lambda: COLOURS.convert("1"),
    "CMYK.tif": lambda: COLOURS.convert("CMYK"),
    "YCbCr.tif": lambda: COLOURS.convert("YCbCr"),
    "CMYK.jpg": lambda: COLOURS.convert("CMYK"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_stage_reads_the_same_colours(tmp_path: Path, name: str) -> None:
    image = IMAGES[name]()
    for folder in ("images", "points"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "images" / name
    path.write_bytes(image) if isinstance(image, bytes) else image.save(path)
    (tmp_path / "points" / f"{path.stem}.csv").write_text("x,y,class\n3,4,1\n")
    tiles = load_data(DataOptions(data=tmp_path, slide_mpp=0.5)).splits
    trained = next(iter(tiles.values()))[0].read()
    predicted = np.asarray(Picture.open(path, 0.5).read(0, 0, 48, 40, 0.5))
    (counted, _), *_ = annotated_squares(tmp_path, 0.5, 24)
    assert (trained == predicted).all() and (trained == counted).all()
    with Image.open(path) as opened:
        alpha_HW = np.asarray(opened.convert("RGBA"))[..., 3]
        assert (trained[alpha_HW == 0] == 255).all()
        assert (trained[alpha_HW == 255] == np.asarray(opened.convert("RGB"))[alpha_HW == 255]).all()
    assert (alpha_HW == 0).any() == ("A" in name or "keyed" in name)


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_other_than_8_bits_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has pixels of mode"):
        open_rgb(tmp_path / "a.tif")
