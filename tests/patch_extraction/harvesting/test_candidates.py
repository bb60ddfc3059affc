"""The grid over tissue, the cheap screen, and the order in which places are looked at."""

import numpy as np
import pytest
from PIL import Image

from patch_extraction.counters.base import HaematoxylinCounter
from patch_extraction.harvesting.candidates import Grid, on_tissue, screen, spread_order, tissue_shares
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from shared.wsi.slide import Slide
from shared.wsi.tissue import Tissue


def tissue(mask: np.ndarray, mpp: float) -> Tissue:
    return Tissue(mask, mpp, Image.new("RGB", mask.shape[::-1]))


def test_grid_holds_whole_patches_of_the_um_asked_for(wsi_dir):
    with Slide(wsi_dir / "PD-L1" / "S.1 ü.a.svs") as slide:
        assert slide.size == (1600, 1600)
        assert Grid.over(slide, 128.0) == Grid(400, 4, 4)
        assert Grid.over(slide, 100.0) == Grid(312, 5, 5)


@pytest.mark.parametrize(("least", "expected"), [(0.0, 9), (0.3, 8), (0.5, 6), (0.9, 4)])
def test_places_covered_by_tissue(least, expected):
    """Tissue over the left and upper part of a 4 x 4 grid: 2.5 x 2.4 places."""
    mask = np.zeros((64, 64), bool)
    mask[:38, :40] = True  # 16 px of 8 um a place
    places_N2 = on_tissue(tissue_shares(Grid(512, 4, 4), tissue(mask, 8.0), 0.25), least)
    assert len(places_N2) == expected
    assert places_N2.max() <= 2


def test_places_against_counting_px_by_px():
    rng = np.random.default_rng(0)
    mask = rng.random((70, 90)) < 0.5
    places_N2 = on_tissue(tissue_shares(Grid(400, 12, 9), tissue(mask, 10.0), 0.2), 0.5)  # 8 px a place
    expected = [
        (column, row)
        for row in range(9)
        for column in range(12)
        if (part := mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]).size and part.mean() >= 0.5
    ]
    # Rows 8.75-9 of the grid lie beyond the mask; what is there of them decides.
    assert [tuple(place) for place in places_N2] == [place for place in expected if place[0] < 12]


def test_the_screen_refuses_next_to_nothing_that_counts(tmp_path):
    """Against exact counts: no place with 30 cells is lost, and most of the empty ones are."""
    counter = HaematoxylinCounter()
    specimen = section(9, 768.0, 768.0)
    write_slide(tmp_path / "a.tif", specimen, 0.25)
    with Slide(tmp_path / "a.tif") as slide:
        grid = Grid.over(slide, 128.0)
        places_N2 = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2)
        exact = np.array(
            [
                len(counter.find(np.asarray(slide.read(x * 512, y * 512, 512, 512, 0.25)), 0.25))
                for x, y in places_N2
            ]
        )
        passed = screen(slide, grid, places_N2, counter, 30)
        assert passed[exact >= 30].all()
        assert (exact >= 30).any() and (exact >= 80).any() and (exact < 40).any()
        strict = screen(slide, grid, places_N2, counter, 80)
        assert strict[exact >= 80].all()
        assert not strict[exact < 40].any()


def test_no_level_to_screen_on(tmp_path):
    write_slide(tmp_path / "a.tif", section(9, 128.0, 128.0), 0.5)
    with Slide(tmp_path / "a.tif") as slide:
        assert slide.level_mpps == (0.5,)
        assert screen(slide, Grid.over(slide, 64.0), np.array([[0, 0], [1, 1]]), HaematoxylinCounter(), 30).all()


def test_an_order_is_a_permutation_and_follows_the_seed():
    places_N2 = np.stack(np.meshgrid(np.arange(13), np.arange(7)), axis=-1).reshape(-1, 2)
    orders = [spread_order(places_N2, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert sorted(orders[0]) == list(range(91))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    assert len(spread_order(places_N2[:0], np.random.default_rng(0))) == 0


def test_every_beginning_is_spread():
    """160 of 4096 places: in each of 16 blocks about ten, more evenly than by chance."""
    places_N2 = np.stack(np.meshgrid(np.arange(64), np.arange(64)), axis=-1).reshape(-1, 2)

    def unevenness(order: np.ndarray) -> float:
        counts = np.bincount((places_N2[order[:160]] // 16) @ [1, 4], minlength=16)
        assert counts.sum() == 160
        return float(counts.std())

    generators = [np.random.default_rng(seed) for seed in range(20)]
    ours = [unevenness(spread_order(places_N2, rng)) for rng in generators]
    chance = [unevenness(rng.permutation(len(places_N2))) for rng in generators]
    assert max(ours) < np.mean(chance)
    assert np.mean(ours) < 0.6 * np.mean(chance)
