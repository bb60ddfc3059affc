"""Reads that lie between px of a level: OpenSlide's, bit by bit, with its seams and edges."""

from pathlib import Path

import numpy as np
import openslide
import pytest

from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from shared.wsi.jpeg_tile_reader import WHOLE, NotReadError, TiledTiff
from tests.shared.wsi.test_jpeg_tile_reader import theirs, tiles_of


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A slide whose second level is smaller by a bit more than 4."""
    path = tmp_path_factory.mktemp("slides") / "odd.svs"
    write_slide(path, section(11, 600.7, 540.9), 0.25, aperio=True)
    return path


def differing(path: Path, level: int, number: int) -> tuple[int, int]:
    """Random reads inside a level and across its right and lower edge: how many, and px that differ."""
    handle, tiles = openslide.OpenSlide(path), tiles_of(path)
    downsample, (width, height) = handle.level_downsamples[level], handle.level_dimensions[level]
    rng = np.random.default_rng(level)
    reads = wrong = 0
    for _ in range(number):
        at = tuple(int(rng.integers(0, side * downsample)) for side in (width, height))
        size = (int(rng.integers(1, 400)), int(rng.integers(1, 400)))
        place = (at[0] / downsample, at[1] / downsample)
        if max(abs(value - round(value)) for value in place) < WHOLE:
            continue
        reads += 1
        wrong += int((np.asarray(tiles.read(level, place, size)) != theirs(handle, at, level, size)).sum())
    return reads, wrong


def test_a_level_smaller_by_no_whole_number(odd):
    assert openslide.OpenSlide(odd).level_downsamples[1] % 1 > 0
    reads, wrong = differing(odd, 1, 40)
    assert reads > 30
    assert wrong == 0


@pytest.mark.parametrize("level", [1, 2, 3])
def test_every_such_level_of_a_real_slide(real_data, level):
    reads, wrong = differing(real_data / "slides" / "CD34_ihc_40x.svs", level, 12)
    assert reads > 8
    assert wrong == 0


def test_where_rounding_is_in_doubt_openslide_reads(odd):
    handle = openslide.OpenSlide(odd)
    tiles = TiledTiff(odd, handle.properties, handle.level_dimensions)
    with pytest.raises(NotReadError):
        tiles.read(1, (10 + WHOLE, 10.0), (50, 50))
