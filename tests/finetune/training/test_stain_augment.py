"""Stains: pictures of known dyes are dyed anew, and their colours are looked at."""

import dataclasses

import numpy as np
import pytest

from finetune.training.augment import AugmentConfig, augment
from finetune.training.stain_augment import DAB, EOSIN, HAEMATOXYLIN, restain

SEEDS = range(40)


def dyed(density_HWC: np.ndarray) -> np.ndarray:
    """Light that is left, as 8-bit RGB (Beer and Lambert)."""
    return np.clip(np.round(256 * 10**-density_HWC - 1), 0, 255).astype(np.uint8)


def tissue(side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin squares on eosin, and where the squares are."""
    nuclei_HW = (np.indices((side, side)) // 8 % 2).all(axis=0)
    return dyed(np.where(nuclei_HW[..., None], 0.8 * HAEMATOXYLIN, 0.3 * EOSIN)), nuclei_HW


def is_brown(colour: np.ndarray) -> bool:
    """Brown is more red than blue; haematoxylin and eosin are not."""
    return bool(colour[0] > colour[2] + 10)


def test_without_strength_a_picture_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (same,) = restain(image[None], 0.0, 0.0, np.random.default_rng(1))
    assert np.abs(same.astype(int) - image).max() <= 1


def test_nuclei_become_the_brown_of_dab() -> None:
    image, nuclei_HW = tissue()
    wanted = dyed(0.8 * DAB)
    found = []
    for seed in SEEDS:
        (picture,) = restain(image[None], 0.0, 1.0, np.random.default_rng(seed))
        found.append(np.median(picture[nuclei_HW], axis=0))
    brown = [colour for colour in found if is_brown(colour)]
    assert len(SEEDS) / 4 < len(brown) < len(SEEDS) * 3 / 4
    assert min(np.abs(colour - wanted).max() for colour in brown) <= 10
    assert min(colour.sum() for colour in brown) < dyed(1.3 * DAB).sum()  # up to nearly black


def test_what_was_pink_turns_brown_or_pale_blue_or_red() -> None:
    image, nuclei_HW = tissue()
    grounds = []
    for seed in SEEDS:
        (picture,) = restain(image[None], 0.0, 1.0, np.random.default_rng(seed))
        grounds.append(np.median(picture[~nuclei_HW], axis=0))
    red = [ground for ground in grounds if ground[1] < min(ground[0], ground[2]) - 20]
    others = [ground for ground in grounds if ground[1] >= min(ground[0], ground[2]) - 20]
    blue = [ground for ground in others if not is_brown(ground)]
    assert len(red) > 2 and len(blue) > 5 and len(others) - len(blue) > 5
    assert min(ground[1] for ground in red) < dyed(0.4 * EOSIN)[1]  # redder than it was
    assert all(ground.sum() > dyed(0.3 * HAEMATOXYLIN).sum() - 15 for ground in blue)


def test_h_and_e_stays_h_and_e_where_no_brown_is_wanted() -> None:
    image, nuclei_HW = tissue()
    pictures = [restain(image[None], 0.2, 0.0, np.random.default_rng(seed))[0] for seed in SEEDS]
    colours = [np.median(picture[nuclei_HW], axis=0) for picture in pictures]
    assert not any(is_brown(colour) for colour in colours)
    assert np.std(colours, axis=0).min() > 5


def test_in_a_mixture_groups_of_nuclei_are_brown() -> None:
    image = np.broadcast_to(dyed(0.8 * HAEMATOXYLIN), (128, 128, 3))
    shares = []
    for seed in SEEDS:
        (picture,) = restain(image[None], 0.0, 1.0, np.random.default_rng(seed))
        shares.append(np.mean(picture[..., 0] > picture[..., 2].astype(int) + 10))
    mixed = [share for share in shares if 0.1 < share < 0.9]
    assert len(mixed) > 3


def test_wider_views_are_dyed_alike() -> None:
    wide = np.broadcast_to(dyed(0.8 * HAEMATOXYLIN), (128, 128, 3))
    for seed in SEEDS:
        wider, own = restain(np.stack([wide, wide]), 0.2, 1.0, np.random.default_rng(seed)).astype(float)
        small = own.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(wider[32:96, 32:96] - small).mean() < 2


@pytest.mark.parametrize("seed", range(3))
def test_points_stay_where_they_are(seed: int) -> None:
    image, _ = tissue(200)
    points, labels = np.random.default_rng(seed).uniform(0, 200, (30, 2)), np.arange(30)
    plain = AugmentConfig(crop=96)
    stained = dataclasses.replace(plain, stain=0.2, brown=0.5)
    (_, xy, kept), (picture, same_xy, same_kept) = (
        augment(config, image[None], points, labels, np.random.default_rng(seed)) for config in (plain, stained)
    )
    np.testing.assert_array_equal(xy, same_xy)
    np.testing.assert_array_equal(kept, same_kept)
    assert picture.shape == (1, 96, 96, 3) and picture.dtype == np.uint8
