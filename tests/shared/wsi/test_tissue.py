"""Tissue masks: on real slides at places judged by eye, and on sample tissue whose outline is known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from shared.samples.sample_slides import write_slide
from shared.samples.specimen import Stain, section
from shared.wsi.slide import Slide
from shared.wsi.tissue import find_tissue, glass_colour, otsu, tissue_mask

# Share of the picture that is tissue, and places as fractions of width and height: on tissue, on glass.
REAL = {
    "CD34_ihc_40x.svs": (
        (0.16, 0.21),
        [(0.02, 0.29), (0.2, 0.4), (0.5, 0.5), (0.8, 0.53), (0.97, 0.6)],
        [(0.5, 0.05), (0.33, 0.79), (0.06, 0.53), (0.9, 0.2), (0.5, 0.9)],
    ),
    "chromogranin_ihc_40x_region.svs": (
        (0.60, 0.72),
        [(0.55, 0.03), (0.5, 0.4), (0.6, 0.8), (0.15, 0.21)],
        [(0.05, 0.5), (0.9, 0.05), (0.2, 0.45)],
    ),
    "pancreas_he_20x_region.svs": ((0.99, 1.0), [(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)], []),
    # Stitched glass of several greys, ink, hairs; also glass that was not scanned.
    "oral_scc_he_4x.svs": (
        (0.26, 0.32),
        [(0.4, 0.5), (0.6, 0.6), (0.2, 0.6), (0.75, 0.75)],
        [(0.9, 0.1), (0.1, 0.9), (0.3, 0.25), (0.6, 0.3), (0.9, 0.85), (0.5, 0.02)],
    ),
    "CMU-1-Small-Region.svs": ((0.36, 0.46), [(0.5, 0.4), (0.4, 0.9)], [(0.1, 0.1), (0.1, 0.8), (0.95, 0.3)]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_slides(real_data, name):
    (least, most), on_tissue, on_glass = REAL[name]
    with Slide(real_data / "slides" / name) as slide:
        tissue = find_tissue(slide)
        area = slide.size[0] * slide.size[1] * slide.mpp**2 * 1e-6
    height, width = tissue.mask.shape
    assert tissue.overview.size == (width, height)
    assert max(width, height) <= 2048
    assert least <= tissue.mask.mean() <= most
    assert all(tissue.mask[int(y * height), int(x * width)] for x, y in on_tissue)
    assert not any(tissue.mask[int(y * height), int(x * width)] for x, y in on_glass)
    assert tissue.area_mm2 == pytest.approx(tissue.mask.mean() * area, rel=0.02)


def test_the_needle_biopsy_stays_in_one_piece(real_data):
    with Slide(real_data / "slides" / "CD34_ihc_40x.svs") as slide:
        _, pieces = ndimage.label(find_tissue(slide).mask)
    assert pieces == 1


@pytest.mark.parametrize("shape", ["blob", "biopsy"])
@pytest.mark.parametrize("grey", [0.84, 0.96])
def test_sample_tissue(tmp_path, shape, grey):
    """Tinted glass, light and dark; the known outline is the reference."""
    stain = Stain(0.7, 0.8, 0.08, 0.04, 0.02, (grey + 0.012, grey, grey - 0.012))
    specimen = section(3, 1600.0, 1600.0, stain, shape)
    write_slide(tmp_path / "a.tif", specimen, 1.0)
    with Slide(tmp_path / "a.tif") as slide:
        tissue = find_tissue(slide)
    y, x = np.mgrid[: tissue.mask.shape[0], : tissue.mask.shape[1]] + 0.5
    points_N2 = np.stack([x.ravel(), y.ravel()], axis=1) * tissue.mpp
    known = specimen.tissue.at(points_N2).reshape(tissue.mask.shape) > 0.5
    assert (known & tissue.mask).sum() / (known | tissue.mask).sum() > 0.93


def picture() -> Image.Image:
    """Pale tissue on glass at 8 um/px: a square 1.6 mm wide."""
    rng = np.random.default_rng(0)
    pixels = np.full((300, 300, 3), 240.0)
    pixels[50:250, 50:250] = (215, 205, 220)
    return Image.fromarray((pixels + rng.normal(0, 2, pixels.shape)).astype(np.uint8))


@pytest.mark.parametrize("ink", [(25, 25, 28), (30, 60, 170), (20, 120, 70), (10, 10, 60)])
def test_pen_marks_are_no_tissue(ink):
    clean = tissue_mask(np.asarray(picture()), 8.0)
    marked = picture()
    ImageDraw.Draw(marked).line([(20, 20), (20, 280)], fill=ink, width=10)  # on glass
    ImageDraw.Draw(marked).line([(150, 20), (150, 280)], fill=ink, width=10)  # across the tissue
    mask = tissue_mask(np.asarray(marked), 8.0)
    assert not mask[:, 15:26].any()
    assert not mask[60:240, 146:155].any()
    away = np.ones_like(mask)
    away[:, 5:36] = away[:, 135:166] = False
    assert (mask == clean)[away].mean() > 0.99


def test_a_red_pen_costs_no_tissue(real_data):
    """It may pass for tissue itself, as blood looks the same; the pale biopsy beside it stays."""
    with Slide(real_data / "slides" / "CD34_ihc_40x.svs") as slide:
        clean = find_tissue(slide)
    marked = clean.overview.copy()
    left = int(0.8 * marked.width)
    ImageDraw.Draw(marked).line([(left, 0), (left, marked.height)], fill=(190, 20, 40), width=25)
    mask = tissue_mask(np.asarray(marked), clean.mpp)
    assert (clean.mask & ~mask).sum() < 0.03 * clean.mask.sum()
    mask[:, left - 25 : left + 26] = False
    assert (mask & ~clean.mask).sum() < 0.03 * clean.mask.sum()


def test_tinted_glass(real_data):
    """Seen through a yellow filter, the tissue is where it was; the colours of tissue pass for no glass."""
    with Slide(real_data / "slides" / "chromogranin_ihc_40x_region.svs") as slide:
        clean = find_tissue(slide)
    tinted = (np.asarray(clean.overview) * np.array([0.8, 0.784, 0.744])).astype(np.uint8)
    mask = tissue_mask(tinted, clean.mpp)
    assert (mask & clean.mask).sum() / (mask | clean.mask).sum() > 0.97


def test_dust_is_dropped_and_lumina_are_kept():
    pixels = np.array(picture())
    pixels[10:16, 10:16] = 90  # 48 um of dirt
    pixels[100:120, 100:120] = 240  # 160 um of lumen
    pixels[150:200, 150:200] = 240  # 400 um of glass
    mask = tissue_mask(pixels, 8.0)
    assert not mask[:40, :40].any()
    assert mask[100:120, 100:120].all()
    assert not mask[165:185, 165:185].any()


@pytest.mark.parametrize("grey", [215, 245, 255])
def test_blank_glass_holds_nothing(grey):
    rng = np.random.default_rng(1)
    pixels = np.full((200, 300, 3), grey) + rng.normal(0, 1.5, (200, 300, 3))
    assert not tissue_mask(np.clip(pixels, 0, 255).astype(np.uint8), 8.0).any()


def test_glass_is_not_taken_from_where_nothing_was_scanned():
    pixels = np.full((100, 100, 3), 255, np.uint8)
    pixels[:50] = 231
    assert glass_colour(pixels) == pytest.approx([231, 231, 231])


def test_otsu_parts_two_heaps():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 0.1, 5000), rng.normal(3, 0.2, 1000)])
    assert 1.3 < otsu(values) < 2.6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_picture_of_one_colour_holds_nothing(grey):
    """As some scanners and converters write what they did not see."""
    assert not tissue_mask(np.full((40, 30, 3), grey, np.uint8), 8.0).any()
