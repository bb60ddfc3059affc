"""Points against pixels: cells are painted, the images augmented, and the paint is found again."""

import numpy as np
import pytest
from scipy import ndimage

from finetune.training.augment import BLOCKS, AugmentConfig, augment, mix

RADIUS = 3


def painted(size: tuple[int, int], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a white image with black discs at known centres, far enough apart not to touch when shrunk."""
    height, width = size
    x, y = np.meshgrid(np.arange(20, width - 15, 30), np.arange(20, height - 15, 30))
    points = np.stack([x, y], -1).reshape(-1, 2) + random.uniform(-4, 4, (x.size, 2))
    rows, columns = np.mgrid[:height, :width] + 0.5
    image = np.full((height, width, 3), 255, np.uint8)
    for px, py in points:
        image[(columns - px) ** 2 + (rows - py) ** 2 <= RADIUS**2] = 0
    return image, points


def discs(view: np.ndarray) -> np.ndarray:
    """Centres of mass of the dark blobs that do not touch the border, px with corner origin."""
    darkness = 255.0 - view[..., 0]
    labelled, count = ndimage.label(darkness > 100)
    inner = [
        label
        for label, (rows, columns) in enumerate(ndimage.find_objects(labelled), start=1)
        if min(rows.start, columns.start) > 2 and max(rows.stop, columns.stop) < len(view) - 2
    ]
    centres = ndimage.center_of_mass(darkness, ndimage.grey_dilation(labelled, 3) if count else labelled, inner)
    return np.array(centres).reshape(-1, 2)[:, ::-1] + 0.5


@pytest.mark.parametrize("size", [(500, 500), (300, 640), (90, 110)])
@pytest.mark.parametrize("seed", range(4))
def test_points_stay_on_their_pixels(size: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    image, points = painted(size, random)
    labels = np.arange(len(points))
    (view,), moved, kept = augment(AugmentConfig(crop=256), image[None], points, labels, random)
    assert view.shape == (256, 256, 3)
    found = discs(view)
    gaps = np.linalg.norm(found[:, None] - moved[None], axis=-1)
    assert len(found) > 2
    assert gaps.min(axis=1).max() < 0.5  # discs are rasterised to whole px, and then resampled
    assert gaps.min(axis=1).mean() < 0.25
    assert len(kept) == len(moved)


def test_labels_stay_with_their_points() -> None:
    random = np.random.default_rng(0)
    image = np.full((200, 200, 3), 255, np.uint8)
    points = random.uniform(5, 195, (30, 2))
    colours = np.linspace(10, 200, 30).astype(np.uint8)
    for (x, y), colour in zip(points.astype(int), colours, strict=True):
        image[y - 2 : y + 3, x - 2 : x + 3] = colour
    no_scaling = AugmentConfig(crop=128, scale=(1.0, 1.0), stain=0.0)
    (view,), moved, kept = augment(no_scaling, image[None], points.astype(int) + 0.5, np.arange(30), random)
    lonely = [i for i, p in enumerate(moved) if np.sort(np.abs(moved - p).max(1))[1:2] > 6]
    assert lonely
    for index in lonely:
        x, y = moved[index].astype(int)
        assert view[y, x, 0] == colours[kept[index]]


def test_every_operation_happens() -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:32, :32] = 0
    views = [
        augment(AugmentConfig(crop=48), image[None], np.zeros((0, 2)), np.zeros(0, int), np.random.default_rng(s))[
            0
        ][0]
        for s in range(60)
    ]
    corners = {(v[0, 0, 0] < 128, v[0, -1, 0] < 128, v[-1, 0, 0] < 128, v[-1, -1, 0] < 128) for v in views}
    dark = {int((v < 128).mean() * 20) for v in views}
    assert len(corners) >= 4
    assert len(dark) >= 4


def test_the_same_seed_gives_the_same_view() -> None:
    image, points = painted((300, 300), np.random.default_rng(0))
    views = [
        augment(AugmentConfig(), image[None], points, np.arange(len(points)), np.random.default_rng(5))
        for _ in range(2)
    ]
    for first, second in zip(*views, strict=True):
        np.testing.assert_array_equal(first, second)


def drawn(cells: np.ndarray, size: tuple[int, int], factor: int, radius: float = 8) -> np.ndarray:
    """Antialiased discs at cells (px of the annotated image), in a view of `factor` times its width."""
    height, width = size
    rows, columns = np.mgrid[:height, :width] + 0.5
    x = (columns - width / 2) * factor + width / 2
    y = (rows - height / 2) * factor + height / 2
    distance = np.sqrt(((x[..., None] - cells[:, 0]) ** 2 + (y[..., None] - cells[:, 1]) ** 2).min(-1))
    grey = 255 * np.clip((distance - radius) / factor + 0.5, 0, 1)
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (AugmentConfig(crop=96, scale=(1.0, 1.0), flip=0.0), (150, 211)),  # shifted
        (AugmentConfig(crop=96, scale=(1.0, 1.0), flip=1.0), (150, 211)),  # and flipped
        (AugmentConfig(crop=120, scale=(1.25, 1.25), flip=0.0), (150, 211)),  # and enlarged
        (AugmentConfig(crop=101, scale=(0.8, 0.8), flip=0.0), (150, 211)),  # and made smaller, to 0.8016
        (AugmentConfig(crop=160, scale=(1.0, 1.0), flip=0.0), (90, 211)),  # padded in height
        (AugmentConfig(crop=160, scale=(0.8, 1.25), flip=1.0), (110, 90)),  # everything, padded on all sides
        (AugmentConfig(crop=96, scale=(1.0, 1.0), flip=0.0, quarter_turns=True), (150, 211)),
        (AugmentConfig(crop=96, scale=(1.0, 1.0), flip=0.0, colour=0.2), (150, 211)),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_each_operation_to_a_tenth_of_a_px(config: AugmentConfig, size: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(22.0, size[1] - 15, 30), np.arange(22.0, size[0] - 15, 30))
    cells = np.stack([x, y], -1).reshape(-1, 2) + random.uniform(-4, 4, (x.size, 2))
    (view,), moved, kept = augment(config, drawn(cells, size, 1)[None], cells, np.arange(len(cells)), random)
    inner = moved[((moved > 14) & (moved < config.crop - 14)).all(axis=1)]  # whole discs
    gaps = np.linalg.norm(inner[:, None] - discs(view)[None], axis=-1).min(axis=1)
    assert len(gaps) > 2 and len(kept) == len(moved)
    assert gaps.max() < 0.1


@pytest.mark.parametrize("size", [(150, 211), (181, 181)])
@pytest.mark.parametrize("seed", range(3))
def test_wider_views_show_what_lies_around_the_crop(size: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = size
    x, y = np.meshgrid(np.arange(-2 * width, 3 * width, 40), np.arange(-2 * height, 3 * height, 40))
    cells = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    views = np.stack([drawn(cells, size, factor) for factor in (4, 2, 1)])
    marks = np.stack(np.meshgrid(np.arange(0.0, width, 9), np.arange(0.0, height, 9)), -1).reshape(-1, 2)
    config = AugmentConfig(crop=96, quarter_turns=False)  # else x of the crop may be y of the image
    views, moved, kept = augment(config, views, marks, np.arange(len(marks)), random)
    assert views.shape == (3, 96, 96, 3)
    slope, origin = np.array([np.polyfit(marks[kept, axis], moved[:, axis], 1) for axis in (0, 1)]).T
    in_crop = cells * slope + origin
    for view, factor in zip(views, (4, 2, 1), strict=True):
        expected = 48 + (in_crop - 48) / factor
        whole = expected[(np.abs(expected - 48) < 48 - 12 / factor * np.abs(slope).max() - 2).all(axis=1)]
        gaps = np.linalg.norm(whole[:, None] - discs(view)[None], axis=-1).min(axis=1)
        assert len(gaps)
        assert gaps.max() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_degraded_discs_stay_under_their_points(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(22.0, 140, 30), np.arange(22.0, 140, 30))
    cells = np.stack([x, y], -1).reshape(-1, 2) + random.uniform(-4, 4, (x.size, 2))
    config = AugmentConfig(crop=150, scale=(1.0, 1.0), flip=0.0, degrade=1.0)
    image = drawn(cells, (150, 150), 1)
    (view,), moved, _ = augment(config, image[None], cells, np.arange(len(cells)), random)
    assert (view != image).any()
    gaps = np.linalg.norm(moved[:, None] - discs(view)[None], axis=-1).min(axis=1)
    assert gaps.max() < 0.3  # noise moves a disc's centre of mass


@pytest.mark.parametrize("seed", range(4))
def test_cells_move_with_their_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    side = 32 * BLOCKS
    columns, rows = np.meshgrid(np.arange(BLOCKS), np.arange(BLOCKS))
    cells = np.stack([columns, rows], -1).reshape(-1, 2) * 32 + random.uniform(13, 19, (BLOCKS**2, 2))
    config = AugmentConfig(crop=side, scale=(1.0, 1.0), flip=0.0, shuffle=1.0)
    (view,), moved, kept = augment(
        config, drawn(cells, (side, side), 1)[None], cells, np.arange(len(cells)), random
    )
    assert len(kept) == len(cells)
    assert (np.abs(moved - cells[kept]).max(axis=1) > 16).sum() > len(cells) / 2
    gaps = np.linalg.norm(moved[:, None] - discs(view)[None], axis=-1).min(axis=1)
    assert gaps.max() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_a_mixed_crop_has_the_cells_of_both_parts(seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(2):
        x, y = np.meshgrid(np.arange(16.0, 112, 26), np.arange(16.0, 112, 26))
        cells = np.stack([x, y], -1).reshape(-1, 2) + random.uniform(-3, 3, (x.size, 2))
        samples.append((drawn(cells, (128, 128), 1, radius=4)[None], cells, np.full(len(cells), len(samples))))
    (view,), points, labels = mix(*samples, random)
    assert set(labels) == {0, 1}
    assert len(points) == len(labels)
    whole = discs(view)
    (across,) = {axis for axis in (0, 1) if points[labels == 0, axis].max() < points[labels == 1, axis].min()}
    line = (points[labels == 0, across].max() + points[labels == 1, across].min()) / 2
    clear = np.abs(points[:, across] - line) > 20  # discs that the line does not cut
    gaps = np.linalg.norm(points[clear][:, None] - whole[None], axis=-1).min(axis=1)
    assert clear.any() and gaps.max() < 0.2
