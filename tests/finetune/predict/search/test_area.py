"""Where cells are looked for: polygons against brute force, tissue of a known shape."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from PIL import Image

from finetune.predict.search.area import Regions, TissueArea
from shared.annotations.polygons import PolygonIndex, polygon_of, shifted
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from shared.wsi.image_source import Picture
from shared.wsi.slide import Slide, SlideError
from tests.finetune.predict.planted import write_leica

SOURCE = Picture(Image.new("RGB", (1000, 800)), 0.5)


def star(centre: tuple[float, float], radius: float, corners: int) -> np.ndarray:
    angles = np.arange(2 * corners) * np.pi / corners + 0.1
    lengths = np.where(np.arange(2 * corners) % 2, radius * 0.4, radius)
    return np.stack([np.cos(angles) * lengths, np.sin(angles) * lengths], 1) + centre


def winding(point: np.ndarray, ring: np.ndarray) -> bool:
    """Whether the ring goes around a point: the sum of the angles under which its sides are seen."""
    to = ring - point
    angles = np.diff(np.unwrap(np.arctan2(*np.append(to, to[:1], axis=0).T)))
    return bool(abs(angles.sum()) > 3)


def test_points_in_a_polygon_with_a_hole() -> None:
    outer, hole = star((500, 400), 300, 7), star((520, 380), 60, 4)
    points_N2 = np.random.default_rng(0).uniform((150, 50), (850, 750), (2000, 2))
    inside_N = PolygonIndex([polygon_of([outer, hole])]).contains(points_N2)
    expected = [winding(point, outer) and not winding(point, hole) for point in points_N2]
    assert (inside_N == expected).all()
    assert 0.2 < inside_N.mean() < 0.6


def test_area_of_regions_counts_what_they_share_once() -> None:
    square = shapely.box(100, 100, 500, 500)
    hole = square.difference(shapely.box(200, 200, 300, 300))
    um2 = 0.25
    assert Regions([square], SOURCE).mm2 == pytest.approx(160_000 * um2 * 1e-6)
    assert Regions([hole], SOURCE).mm2 == pytest.approx(150_000 * um2 * 1e-6)
    both = Regions([square, shifted(square, 200, 0)], SOURCE)
    assert both.mm2 == pytest.approx(240_000 * um2 * 1e-6)
    # Half of it lies beyond the slide.
    assert Regions([shifted(square, -300, 0)], SOURCE).mm2 == pytest.approx(80_000 * um2 * 1e-6)
    with pytest.raises(SlideError, match="a region is outside"):
        Regions([shifted(square, 5000, 0)], SOURCE)


def shoelace(ring: np.ndarray) -> float:
    x_N, y_N = ring.T
    return abs(float(np.dot(x_N, np.roll(y_N, -1)) - np.dot(y_N, np.roll(x_N, -1)))) / 2


@pytest.mark.parametrize("side", [15.3, 60, 400])
def test_small_regions_far_apart_are_measured_as_exactly_as_one(side: float) -> None:
    """Squares and stars in the corners of a large slide."""
    slide = SimpleNamespace(size=(100_000, 80_000), mpp=0.25, path=Path("slide"))
    corners = np.array([(0, 0), (90_000, 0), (0, 70_000), (60_000, 60_000)])
    places = corners + np.random.default_rng(0).uniform(0, 3000, (4, 2))
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * side
    for shape in (square, star((side, side), side, 5)):
        regions = Regions([polygon_of([shape + place]) for place in places], slide)
        assert regions.mm2 == pytest.approx(4 * shoelace(shape) * 0.25**2 * 1e-6, rel=2e-3)
    overlapping = [polygon_of([square + place + shift * side]) for place in places for shift in (0, 0.5)]
    assert Regions(overlapping, slide).mm2 == pytest.approx(4 * 1.75 * side**2 * 0.25**2 * 1e-6, rel=2e-3)
    for x, y in places:
        assert Regions(overlapping, slide).touches(x - 500, y - 500, x + 500, y + 500)
        assert not Regions(overlapping, slide).touches(x - 500, y - 500, x - 1, y - 1)


def test_no_part_of_a_region_is_passed_over() -> None:
    """Every box that holds a point of a region is touched."""
    regions = Regions([polygon_of([star((300, 300), 250, 9)]), polygon_of([star((800, 600), 90, 3)])], SOURCE)
    points_N2 = np.random.default_rng(1).uniform((0, 0), (1000, 800), (4000, 2))
    inside_N = regions.contains(points_N2)
    untouched = 0
    for left in range(0, 1000, 50):
        for top in range(0, 800, 50):
            in_box_N = ((points_N2 >= (left, top)) & (points_N2 < (left + 50, top + 50))).all(axis=1)
            touched = regions.touches(left, top, left + 50, top + 50)
            assert touched or not inside_N[in_box_N].any()
            untouched += not touched
    assert untouched > 150


def test_tissue_of_a_slide(tmp_path: Path) -> None:
    specimen = section(3, 1024, 1024, shape="blob")
    write_slide(tmp_path / "a.svs", specimen, 1.0, aperio=True)
    with Slide(tmp_path / "a.svs") as slide:
        area = TissueArea(slide)
        points_N2, _ = specimen.cells(1.0)
        assert area.contains(points_N2).mean() > 0.99
        assert not area.contains(np.array([(2.0, 2.0), (1020.0, 1020.0)])).any()
        assert not area.touches(0, 0, 20, 20) and area.touches(*points_N2[0], *(points_N2[0] + 1))
        assert 0.2 < area.mm2 < 1.0


def test_a_slide_without_tissue(tmp_path: Path) -> None:
    glass = Image.new("RGB", (512, 512), (240, 240, 240))
    write_leica(tmp_path / "glass.scn", glass, 1.0, (600, 600), (8, 8))
    with Slide(tmp_path / "glass.scn") as slide, pytest.raises(SlideError, match=r"no tissue.*with --everywhere"):
        TissueArea(slide)
