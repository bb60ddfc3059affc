"""Sharpness of patches: blur lowers it, stain and empty parts do not."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from patch_extraction.config import HarvestConfig
from patch_extraction.harvesting.focus import focus
from shared.samples.specimen import section

MIN_FOCUS = HarvestConfig().min_focus


@pytest.fixture(scope="module")
def sharp() -> Image.Image:
    return Image.fromarray(section(3, 128.0, 128.0).render(0.25))


def blurred(image: Image.Image, um: float) -> np.ndarray:
    return np.asarray(image.filter(ImageFilter.GaussianBlur(um / 0.25)))


def test_a_ramp_has_none_and_single_steps_have_three():
    ramp = np.repeat(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], 512, axis=0).repeat(3, axis=2)
    assert focus(ramp, 0.5) == pytest.approx(0, abs=0.01)  # the steps of whole grey values are too low to count
    stripes = np.broadcast_to((np.arange(512) // 16 % 2 * 200)[None, :, None], (512, 512, 3)).astype(np.uint8)
    assert focus(stripes, 0.5) == pytest.approx(3, abs=0.01)
    assert focus(np.ascontiguousarray(stripes.transpose(1, 0, 2)), 0.5) == pytest.approx(3, abs=0.01)
    assert focus(np.full((512, 512, 3), 240, np.uint8), 0.25) == 0


def test_blur_is_refused_and_sharp_fields_are_not(sharp):
    values = [focus(blurred(sharp, um), 0.25) for um in (0.01, 0.5, 1.0, 2.0, 3.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 4 * MIN_FOCUS and max(values[3:]) < MIN_FOCUS


def test_stain_and_empty_parts_matter_little(sharp):
    pixels = np.asarray(sharp).astype(float)
    pale = (255 - (255 - pixels) * 0.5).astype(np.uint8)
    half = np.asarray(sharp).copy()
    noise = np.random.default_rng(0).normal(240, 1.5, (512, 256, 1))  # of a camera, on glass
    half[:, 256:] = noise.clip(0, 255).astype(np.uint8)
    assert focus(pale, 0.25) == pytest.approx(focus(np.asarray(sharp), 0.25), rel=0.2)
    assert focus(half, 0.25) == pytest.approx(focus(np.asarray(sharp), 0.25), rel=0.2)
    half[:, :256] = blurred(sharp, 2.0)[:, :256]  # and a sharp seam, like a mark of a pen
    assert focus(half, 0.25) < MIN_FOCUS


def test_real_fields(real_data):
    fields = {
        path.stem: np.asarray(Image.open(path).convert("RGB")) for path in real_data.glob("hard_fields/*.png")
    }
    for name, image_HW3 in fields.items():
        assert (focus(image_HW3, 0.25) < MIN_FOCUS) == name.startswith("blur"), name
