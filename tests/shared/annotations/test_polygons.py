"""Polygons: rasters, merging and search against brute force; as many and as large as people draw them."""

import time
import tracemalloc

import numpy as np
import pytest
import shapely

from shared.annotations.polygons import PolygonIndex, mask, merge, polygon_of, subtract


def outline(corners: int, radius: float, seed: int = 0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    lengths = radius * (1 + 0.02 * np.random.default_rng(seed).random(corners))
    return np.stack([np.cos(angles) * lengths, np.sin(angles) * lengths], axis=1) + radius


@pytest.mark.parametrize("seed", range(5))
def test_a_raster_shows_the_px_whose_centre_is_inside(seed: int) -> None:
    """Of a star with a hole, of outlines that cross themselves, of several."""
    random = np.random.default_rng(seed)
    hole = outline(9, 20, seed) + 30
    crossing = random.uniform((120, 0), (220, 100), (8, 2))
    polygons = [polygon_of([outline(50, 50, seed), hole]), polygon_of([crossing])]
    corner, px = random.uniform(-20, 20, 2), random.uniform(0.7, 3)
    x, y = np.meshgrid(corner[0] + (np.arange(90) + 0.5) * px, corner[1] + (np.arange(70) + 0.5) * px)
    expected = shapely.contains_xy(polygons[0], x, y) | shapely.contains_xy(polygons[1], x, y)
    assert (mask(polygons, corner, px, 70, 90) == expected).all()
    assert (PolygonIndex(polygons).mask(corner, px, 70, 90) == expected).all()
    assert not mask([], corner, px, 3, 4).any()


def test_merging_leaves_no_area_in_two_polygons() -> None:
    nested = [shapely.box(0, 0, 100, 100), shapely.box(20, 20, 40, 40), shapely.box(90, 90, 120, 120)]
    beside = [shapely.box(100, 0, 150, 50), shapely.box(300, 0, 400, 100)]
    merged = merge([*nested, *beside])
    assert [shape.area for shape in merged] == [100**2 + 30**2 - 10**2, 50**2, 100**2]  # those that touch stay two
    assert merge([]) == []


def test_subtracting() -> None:
    squares = [shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10), shapely.box(40, 0, 50, 10)]
    rest = subtract(squares, [shapely.box(-5, -5, 5, 15), shapely.box(2, 2, 8, 4), shapely.box(19, -1, 31, 11)])
    assert [shape.area for shape in rest] == [50 - 6, 100]
    assert subtract(squares, []) == squares


def test_an_outline_of_30_000_corners_is_searched_and_drawn_fast() -> None:
    polygon = polygon_of([outline(30_000, 20_000)])
    points_N2 = np.random.default_rng(0).uniform(0, 40_000, (2000, 2))
    index = PolygonIndex([polygon])
    expected = [polygon.contains(shapely.Point(point)) for point in points_N2[:50]]
    begin = time.process_time()
    inside_N = index.contains(points_N2)
    index.mask(np.array([5000, 5000]), 1, 512, 512)
    assert time.process_time() - begin < 0.3  # 0.02 s where nothing else runs; edge by edge it took 0.5 s
    assert inside_N[:50].tolist() == expected


def test_20_000_outlines_cost_a_second_and_little_memory() -> None:
    """Every second one overlaps the one before it; a table of all pairs would take 1.6 GB."""
    corners = np.stack(np.meshgrid(np.arange(200), np.arange(100)), axis=-1).reshape(-1, 2) * (30.0, 60.0)
    corners[1::2, 0] -= 20
    polygons = shapely.polygons(outline(12, 10) + corners[:, None]).tolist()
    tracemalloc.start()
    begin = time.process_time()
    merged = merge(polygons)
    index = PolygonIndex(merged)
    assert index.touches(0, 0, 15, 15) and not index.touches(0, 30, 6000, 50)
    assert index.contains(corners + 10).all()
    assert time.process_time() - begin < 15  # 1.5 s where nothing else runs
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert len(merged) == 10_000
