"""Views of batches: each sample by its own lot, in the official order and with the official frequencies."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as official
from torchvision.transforms.v2 import functional as TF

from shared.errors import UserError
from ssl_pretrain.data.color_ops import BRIGHTNESS, CONTRAST, HUE, SATURATION
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.views import AugmentParams, Views, ViewsConfig
from tests.ssl_pretrain.conftest import tissue

CROP = Crop(size=8, scale=(0.2, 1.0))
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
# Everything at once, for what must hold whatever is switched on.
ALL = ViewsConfig(
    vertical_flip=0.5,
    quarter_turns=True,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
)
BUSY = Crop(size=32, scale=(0.2, 1.0), count=2, blur=0.5, solarise=0.2)


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tissues(count: int, side: int = 32) -> Tensor:
    return torch.stack([TF.pil_to_tensor(tissue(number).crop((0, 0, side, side))) for number in range(count)])


def plain(config: ViewsConfig, *crops: Crop) -> Views:
    """Return views whose values stay between 0 and 255."""
    return Views(config, crops, (0, 0, 0), (1 / 255,) * 3)


def test_normalisation_equals_torchvisions_and_can_be_undone():
    crops_BCHW = images(5)
    views = Views(ViewsConfig(horizontal_flip=0), (CROP,), MEAN, STD)
    (view_BCHW,) = views([crops_BCHW])
    expected = TF.normalize(TF.to_dtype(crops_BCHW, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(view_BCHW, expected)
    torch.testing.assert_close(views.normalise(crops_BCHW), expected)
    assert torch.equal(views.restore(view_BCHW), crops_BCHW)


def test_each_image_is_flipped_by_its_own_lot():
    crops_BCHW = images(400)
    views = plain(ViewsConfig(horizontal_flip=0.25, vertical_flip=0.5), CROP, CROP)
    torch.manual_seed(1)
    first, second = views([crops_BCHW, crops_BCHW])
    flips = {"none": [], "horizontal": [-1], "vertical": [-2], "both": [-1, -2]}
    counts = dict.fromkeys(flips, 0)
    for image_CHW, view_CHW in zip(crops_BCHW, first, strict=True):
        matches = [name for name, dims in flips.items() if image_CHW.flip(dims).float().allclose(view_CHW)]
        assert len(matches) == 1
        counts[matches[0]] += 1
    expected = {"none": 150, "horizontal": 50, "vertical": 150, "both": 50}
    assert all(abs(counts[name] - expected[name]) < 45 for name in flips)
    assert not torch.equal(first, second)  # the two views of an image draw separately


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_quarter_turns_and_then_flips_equal_torchvisions(flips: tuple[float, float]):
    crops_BCHW = images(200)
    config = ViewsConfig(horizontal_flip=flips[0], vertical_flip=flips[1], quarter_turns=True)
    (view_BCHW,) = plain(config, CROP)([crops_BCHW])
    counts = [0] * 4
    for image_CHW, view_CHW in zip(crops_BCHW, view_BCHW, strict=True):
        turned = [torch.rot90(image_CHW, quarters, (-2, -1)) for quarters in range(4)]
        turned = [TF.hflip(image) if flips[0] else image for image in turned]
        turned = [TF.vflip(image) if flips[1] else image for image in turned]
        matches = [quarters for quarters in range(4) if turned[quarters].float().allclose(view_CHW)]
        assert len(matches) == 1
        counts[matches[0]] += 1
    assert all(abs(count - 50) < 25 for count in counts)


def test_view_equals_torchvisions_functions_in_the_official_order():
    """With the lots that were drawn, image by image: flips, jitter, grayscale, blur, solarise, normalise."""
    crops_BCHW = tissues(48)
    views = Views(ALL, (BUSY,), MEAN, STD)
    torch.manual_seed(3)
    lots = views.draw(48, BUSY)
    torch.manual_seed(3)
    ours_BCHW = torch.cat(views([crops_BCHW[:24], crops_BCHW[24:]]))
    theirs = [theirs_of(image_CHW, lots, number) for number, image_CHW in enumerate(crops_BCHW)]
    expected_BCHW = TF.normalize(torch.stack(theirs), MEAN, STD)
    different = (ours_BCHW - expected_BCHW).abs() > 1e-4
    # A value that is the solarising threshold but for the last digit may fall on either side.
    assert different.float().mean() < 1e-4


def theirs_of(image_CHW: Tensor, lots: AugmentParams, number: int) -> Tensor:
    image_CHW = image_CHW.mT if lots.transpose_B[number] else image_CHW
    image_CHW = TF.hflip(image_CHW) if lots.horizontal_B[number] else image_CHW
    image_CHW = TF.vflip(image_CHW) if lots.vertical_B[number] else image_CHW
    image_CHW = TF.to_dtype(image_CHW, torch.float32, scale=True)
    functions = {BRIGHTNESS: TF.adjust_brightness, CONTRAST: TF.adjust_contrast}
    functions |= {SATURATION: TF.adjust_saturation, HUE: TF.adjust_hue}
    strengths = [*lots.jitter.factor_B3[number].tolist(), lots.jitter.turn_B[number].item()]
    for operation in lots.jitter.order_B4[number].tolist():
        image_CHW = functions[operation](image_CHW, strengths[operation])
    image_CHW = TF.rgb_to_grayscale(image_CHW, 3) if lots.gray_B[number] else image_CHW
    if sigma := lots.sigma_B[number].item():
        image_CHW = TF.gaussian_blur(image_CHW, [13, 13], [sigma, sigma])
    threshold = lots.threshold_B[number].item()
    return TF.solarize(image_CHW, threshold) if threshold < 1 else image_CHW


def test_lots_have_the_frequencies_and_ranges_asked_for():
    config = ViewsConfig(
        jitter=0.8, brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, grayscale=0.2, horizontal_flip=0.5
    )
    torch.manual_seed(0)
    count = 20_000
    lots = Views(config, (BUSY,), MEAN, STD).draw(count, BUSY)
    changed_B = lots.jitter.turn_B != 0
    for chosen_B, probability in (
        (lots.horizontal_B, 0.5),
        (changed_B, 0.8),
        (lots.gray_B, 0.2),
        (lots.sigma_B > 0, 0.5),
        (lots.threshold_B < 1, 0.2),
    ):
        assert abs(chosen_B.float().mean() - probability) < 0.015
    assert lots.vertical_B is None and lots.transpose_B is None
    assert (lots.jitter.factor_B3[~changed_B] == 1).all()
    ranges = {0: (0.6, 1.4), 1: (0.7, 1.3), 2: (0.0, 2.5)}  # torchvision cuts factors off at 0
    for operation, limits in ranges.items():
        uniform_between(lots.jitter.factor_B3[changed_B, operation], *limits)
    uniform_between(lots.jitter.turn_B[changed_B], -0.1, 0.1)
    uniform_between(lots.sigma_B[lots.sigma_B > 0], 0.1, 2.0)
    assert torch.allclose(lots.threshold_B[lots.threshold_B < 1], torch.tensor(128 / 255))
    orders, counts = lots.jitter.order_B4.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and (counts / count * 24 - 1).abs().max() < 0.15


def uniform_between(values_N: Tensor, low: float, high: float) -> None:
    assert low <= values_N.min() and values_N.max() <= high
    quantiles = torch.quantile((values_N - low) / (high - low), torch.linspace(0, 1, 11))
    assert (quantiles - torch.linspace(0, 1, 11)).abs().max() < 0.02


def test_lots_are_independent_of_each_other():
    """Also within a sample: a correlation would change what the networks see."""
    torch.manual_seed(0)
    lots = Views(ALL, (BUSY,), MEAN, STD).draw(20_000, BUSY)
    changed_B = lots.jitter.turn_B != 0
    of_jitter = [*lots.jitter.factor_B3.T, lots.jitter.turn_B, lots.jitter.order_B4[:, 0]]
    others = [lots.horizontal_B, lots.vertical_B, lots.transpose_B, lots.gray_B, lots.sigma_B, lots.threshold_B]
    table = torch.stack([lot_B[changed_B].float() for lot_B in (*of_jitter, *others)])
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 0.04


def test_crops_of_a_kind_get_what_their_kind_is_due():
    """As in DINO: the first view is always blurred, the second seldom but also solarised, the others at times."""
    kinds = (
        Crop(size=28, scale=(0.4, 1.0), blur=1.0),
        Crop(size=28, scale=(0.4, 1.0), blur=0.1, solarise=0.2),
        Crop(size=24, scale=(0.05, 0.4), count=3, blur=0.5),
    )
    image_BCHW = torch.zeros(400, 3, 28, 28, dtype=torch.uint8)
    image_BCHW[..., :8, :] = 255  # solarising turns this black
    image_BCHW[..., 14:, 14:] = 100  # and a blur softens this edge
    crops = [image_BCHW, image_BCHW, *[image_BCHW[..., 2:26, 2:26]] * 3]
    torch.manual_seed(0)
    views = plain(ViewsConfig(horizontal_flip=0, blur_sigma=(1.0, 1.1)), *kinds)(crops)
    assert [view.shape for view in views] == [crop.shape for crop in crops]
    is_blurred = [view[:, 0, -4, view.shape[-1] // 2 - 1] > 1 for view in views]
    np.testing.assert_allclose([each.float().mean() for each in is_blurred], [1, 0.1, 0.5, 0.5, 0.5], atol=0.08)
    assert len({tuple(each.tolist()) for each in is_blurred[2:]}) == 3
    inverted = [(view[:, 0, 0, 0] < 100).float().mean() for view in views]
    np.testing.assert_allclose(inverted, [0, 0.2, 0, 0, 0], atol=0.08)


def test_views_come_in_the_order_of_the_crops():
    """Also where there are several of the first kind, as in SwAV."""
    kinds = (Crop(size=8, scale=(0.14, 1.0), count=2), Crop(size=6, scale=(0.05, 0.14), count=3))
    eight, six = images(10), images(15)[..., :6, :6]
    crops = [*eight.chunk(2), *six.chunk(3)]
    views = plain(ViewsConfig(horizontal_flip=0), *kinds)(crops)
    for crop_BCHW, view_BCHW in zip(crops, views, strict=True):
        torch.testing.assert_close(view_BCHW, crop_BCHW.float())


def test_same_seed_gives_the_same_views_and_another_seed_others():
    crops = [tissues(4)] * 2
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(torch.cat(Views(ALL, (BUSY,), MEAN, STD)(crops)))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=0.1)


def test_samples_of_a_batch_differ():
    same_BCHW = tissues(1).expand(16, -1, -1, -1)
    always = ViewsConfig(jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    (view_BCHW,) = Views(always, (Crop(size=32, scale=(0.2, 1.0)),), MEAN, STD)([same_BCHW])
    assert torch.pdist(view_BCHW.flatten(1)).min() > 1


def test_autocast_changes_nothing_and_no_gradient_is_kept():
    crops = [tissues(4)] * 2
    views = Views(ALL, (BUSY,), MEAN, STD)
    torch.manual_seed(0)
    exact = views(crops)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = views(crops)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(exact, under_autocast, strict=True))


# MoCo v2's and DINO's second view's as their main files compose them, without the crop.
OFFICIAL = {
    "moco_v2": (
        ViewsConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2),
        Crop(size=32, scale=(0.2, 1.0), blur=0.5),
        (official.ColorJitter(0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0.0),
    ),
    "dino": (
        ViewsConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grayscale=0.2),
        Crop(size=32, scale=(0.4, 1.0), blur=0.1, solarise=0.2),
        (official.ColorJitter(0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_views_are_distributed_as_those_of_the_official_code(name: str):
    """Quantiles of brightness, colour and sharpness over 2,000 views of one image, against PIL's way."""
    config, crop, (jitter, grayscale, blur, solarise) = OFFICIAL[name]
    picture = tissue(1).resize((32, 32))
    pil_views = official.Compose(
        [
            official.RandomApply([jitter], p=0.8),
            official.RandomGrayscale(p=grayscale),
            official.RandomApply([pil_blur], p=blur),
            official.RandomApply([ImageOps.solarize], p=solarise),
        ]
    )
    torch.manual_seed(0)
    theirs = torch.stack([TF.pil_to_tensor(pil_views(picture)) for _ in range(2000)]).float()
    (ours,) = plain(config, crop)([TF.pil_to_tensor(picture).expand(2000, -1, -1, -1)])
    # Rounding to 8 bits moves a value by a level or so; 0.065: what 2,000 draws leave to chance (p = 0.0005).
    for one, other, rounding in zip(measures(ours), measures(theirs), (1, 1, 1, 1, 0.5), strict=True):
        for value in np.quantile(other, np.linspace(0.05, 0.95, 19)):
            share = (other <= value).mean()
            assert (one <= value - rounding).mean() - 0.065 < share < (one <= value + rounding).mean() + 0.065


def pil_blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * torch.rand(1).item()))


def measures(view_BCHW: Tensor) -> list[np.ndarray]:
    """Mean red, mean blue, mean brightness, spread of the colours, difference of neighbours; each (B,)."""
    mean_BC = view_BCHW.mean(dim=(2, 3))
    colourfulness = (view_BCHW.amax(1) - view_BCHW.amin(1)).mean(dim=(1, 2))
    sharpness = view_BCHW.diff(dim=-1).abs().mean(dim=(1, 2, 3))
    return [values.numpy() for values in (mean_BC[:, 0], mean_BC[:, 2], mean_BC.mean(1), colourfulness, sharpness)]


def test_little_hue_and_no_grayscale_keep_brown_and_blue_apart():
    """Marked (brown) and unmarked (blue) nuclei in one view: which has more DAB is what a biomarker is about."""
    gentle = ViewsConfig(horizontal_flip=0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05)
    official = ViewsConfig(**{**vars(gentle), "hue": 0.1, "grayscale": 0.2})  # MoCo v2
    assert share_kept_apart(gentle) > 0.99
    assert share_kept_apart(official) < 0.85
    assert share_kept_apart(ViewsConfig(horizontal_flip=0, grayscale=1.0)) < 0.05


def share_kept_apart(config: ViewsConfig) -> float:
    """Share of views in which brown has more DAB for its haematoxylin than blue."""
    brown, blue, ground = (120, 70, 40), (90, 80, 150), (235, 235, 235)
    row = torch.tensor([brown, blue, ground, ground], dtype=torch.uint8).T
    image_BCHW = row[None, :, None, :].repeat(1000, 1, 4, 1)
    torch.manual_seed(0)
    (view_BCHW,) = plain(config, Crop(size=4, scale=(0.2, 1.0)))([image_BCHW])
    ratio_BN = dab_to_haematoxylin(view_BCHW[:, :, 0, :2])
    return (ratio_BN[:, 0] > ratio_BN[:, 1]).float().mean().item()


def dab_to_haematoxylin(colour_BCN: Tensor) -> Tensor:
    """How much more DAB than haematoxylin, by Ruifrok and Johnston's stain vectors; (B, N)."""
    stains = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # H, eosin, DAB
    density_BCN = -torch.log((colour_BCN + 1) / 256)
    amounts_BSN = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True)).T @ density_BCN
    return amounts_BSN[:, 2] - amounts_BSN[:, 0]


@pytest.mark.slow
def test_compiled_views_are_the_same_given_the_same_lots():
    views = Views(ALL, (BUSY,), MEAN, STD)
    lots = views.draw(8, BUSY)
    crops_BCHW = tissues(8)
    compiled = torch.compile(views.varied, fullgraph=True)
    torch.testing.assert_close(compiled(crops_BCHW, lots), views.varied(crops_BCHW, lots), atol=1e-4, rtol=0)
    whole = torch.compile(views, fullgraph=True)
    first, second = whole([crops_BCHW, crops_BCHW])
    assert first.shape == second.shape == (8, 3, 32, 32) and not torch.equal(first, second)


@pytest.mark.gpu
def test_views_never_make_the_host_wait_for_the_gpu():
    views = Views(ALL, (BUSY,), MEAN, STD).cuda()
    crops = [tissues(8).cuda()] * 2
    views(crops)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views(crops)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"jitter": 1.2}, r"^--views.jitter 1.2 is out of range; give a number from 0 to 1$"),
        ({"hue": 0.6}, r"^--views.hue 0.6 is out of range; give a number from 0 to 0.5$"),
        ({"brightness": -0.1}, r"^--views.brightness -0.1 is out of range; give a number of at least 0$"),
        ({"horizontal_flip": 2}, r"^--views.horizontal-flip 2 is out of range"),
        ({"solarise_threshold": 128}, r"^--views.solarise-threshold 128 is out of range"),
        ({"blur_sigma": (2.0, 0.1)}, r"^--views.blur-sigma 2.0 0.1 are no widths from small to large; give two"),
        ({"blur_sigma": (0.0, 0.1)}, r"^--views.blur-sigma 0.0 0.1 are no widths"),
        ({"grayscale": float("nan")}, r"^--views.grayscale nan is out of range"),
    ],
)
def test_numbers_that_make_no_sense(fields: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        ViewsConfig(**fields).check()
