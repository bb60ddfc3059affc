"""Random resized crops against torchvision's and PIL's."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torchvision.transforms import RandomResizedCrop

from shared.shards.tar_reader import EncodedImage
from ssl_pretrain.data.crops import Crop, UndecodableError, cut, decode, random_box
from tests.ssl_pretrain.conftest import jpeg, tissue


def test_boxes_are_distributed_as_torchvisions():
    """Quartiles of area, aspect ratio and place over 4,000 draws, also where the fallback is frequent."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for height, width, scale in [(512, 512, (0.2, 1.0)), (100, 300, (0.5, 1.0))]:
        image = torch.empty(3, height, width)
        ours = np.array([random_box(height, width, scale, random) for _ in range(4000)])
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)])
        for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0]):
            a, b = (np.quantile(measure(boxes), [0.1, 0.25, 0.5, 0.75, 0.9]) for boxes in (ours, theirs))
            spread = np.ptp(measure(theirs)) or 1
            assert np.abs(a - b).max() < 0.04 * spread
        assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", [Crop(size=224, scale=(1.0, 1.0)), Crop(size=96, scale=(0.05, 0.4), count=8)])
def test_crops_are_cut_and_resized_as_pil_does(crop: Crop, interpolation: str):
    """With antialiasing, whether they get smaller or larger, from what a JPEG decodes to."""
    data = jpeg(tissue(1).resize((512, 512), Picture.Resampling.BILINEAR))
    image_CHW = decode(EncodedImage("key", data))
    picture = Picture.fromarray(image_CHW.permute(1, 2, 0).numpy())
    random = np.random.default_rng(0)
    for ours in cut(image_CHW, (replace(crop, interpolation=interpolation),), np.random.default_rng(0)):
        top, left, height, width = random_box(512, 512, crop.scale, random)
        part = picture.crop((left, top, left + width, top + height))
        theirs = part.resize((crop.size,) * 2, Picture.Resampling[interpolation.upper()])
        assert ours.dtype == torch.uint8
        assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.array(theirs)).max() <= 1


def test_decoding_equals_pil():
    data = jpeg(tissue(3))
    theirs = np.array(Picture.open(io.BytesIO(data)))
    image_CHW = decode(EncodedImage("key", data))
    assert np.abs(image_CHW.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 2


def test_crops_of_several_kinds():
    image_CHW = torch.zeros(3, 64, 48, dtype=torch.uint8)
    crops = (Crop(size=32, scale=(0.2, 1.0), count=2), Crop(size=16, scale=(0.05, 0.2), count=3))
    sizes = [tuple(view.shape) for view in cut(image_CHW, crops, np.random.default_rng(0))]
    assert sizes == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3


def test_a_jpeg_may_lack_its_end_marker_and_nothing_else():
    data = jpeg(tissue(3))
    assert torch.equal(decode(EncodedImage("key", data[:-2])), decode(EncodedImage("key", data)))
    for content in (data[:-40], data[: len(data) // 2], data[:4], b""):
        with pytest.raises(UndecodableError):
            decode(EncodedImage("key", content))


def test_png_is_decoded_and_what_is_transparent_is_white():
    pixels = np.asarray(tissue(3)).copy()
    opaque = decode(EncodedImage("key", png(Picture.fromarray(pixels))))
    assert np.array_equal(opaque.permute(1, 2, 0).numpy(), pixels)
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    seen = decode(EncodedImage("key", png(Picture.fromarray(np.dstack([pixels, alpha])))))
    assert (seen[:, :10] == 255).all() and torch.equal(seen[:, 10:], opaque[:, 10:])
    grey = Picture.fromarray(np.full((8, 8), 40_000, np.uint16))
    for content in (png(Picture.fromarray(pixels))[:100], png(grey)):
        with pytest.raises(UndecodableError):
            decode(EncodedImage("key", content))


def png(image: Picture.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
