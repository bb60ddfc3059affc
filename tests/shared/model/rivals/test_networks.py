"""The rivals' networks: parameters as counted for the paper's tables, outputs that move with the image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.model.detector_file import load_detector, network_of, save_detector
from shared.model.dpa_p2pnet import DetectorConfig
from shared.model.rivals.rival_detector import NETWORKS, RivalConfig, RivalDetector
from shared.weights.weights_file import load_into, read

# With ten classes and with three.
PARAMETERS = {
    "unet": (31_038_218, 31_037_763),
    "deeplabv3plus": (40_349_354, 40_347_555),
    "ucsrnet": (10_073_738, 10_073_283),
    "mcspatnet": (26_137_955, 26_132_040),
    "vgg": (21_500_618, 21_499_715),
    "hrnet": (66_593_274, 66_586_099),
    "cltr": (43_629_390, 43_627_591),
}
DECODERS = {"unet": "discs", "deeplabv3plus": "discs", "ucsrnet": "peaks", "mcspatnet": "squares"}
DECODERS |= {"hrnet": "fidt", "vgg": "counted", "cltr": "queries"}
LIGHT = ("ucsrnet", "deeplabv3plus", "vgg")  # of the networks, those that take a fraction of a second


def config(network: str, classes: int = 2, **changes) -> RivalConfig:
    fields = {"network": network, "decoder": DECODERS[network], "mpp": 0.5, "classes": classes, **changes}
    return RivalConfig(**fields).with_trunk("")


@pytest.mark.parametrize("network", PARAMETERS)
def test_parameters(network: str) -> None:
    assert set(PARAMETERS) == set(NETWORKS)
    for classes, expected in zip((10, 3), PARAMETERS[network], strict=True):
        with torch.device("meta"):
            detector = RivalDetector(config(network, classes))
        assert sum(parameter.numel() for parameter in detector.parameters()) == expected


@pytest.mark.parametrize(
    ("network", "stride"), [("ucsrnet", 4), ("deeplabv3plus", 1), ("vgg", 8), ("mcspatnet", 1)]
)
def test_any_size_of_image(network: str, stride: int) -> None:
    torch.manual_seed(0)
    detector = RivalDetector(config(network)).eval()
    with torch.inference_mode():
        found = detector(torch.zeros(1, 3, 37, 50, dtype=torch.uint8))
    assert all(each.shape[-2:] == (-(-37 // stride), -(-50 // stride)) for each in found)


def test_sides_of_mcspatnet_s_valid_convolutions_fit() -> None:
    """A px of the output belongs to the same px of the image: its gradient is centred on it."""
    torch.manual_seed(0)
    network = RivalDetector(config("mcspatnet")).eval().network
    image = torch.rand(1, 3, 48, 48, requires_grad=True)
    network(image).detection_B1HW[0, 0, 20, 28].backward()
    weight_HW = image.grad.square().sum((0, 1))  # type: ignore[union-attr]
    y, x = ((weight_HW.sum(axis) * torch.arange(48)).sum() / weight_HW.sum() for axis in (1, 0))
    assert abs(y - 20) < 1 and abs(x - 28) < 1


@pytest.mark.parametrize("network", ["ucsrnet", "vgg"])
def test_maps_move_with_the_image(network: str) -> None:
    """By 64 px, at which windows of slides begin; away from the border, which padding shows."""
    torch.manual_seed(0)
    detector = RivalDetector(config(network)).eval()
    image = torch.rand(1, 3, 64, 640)
    with torch.inference_mode():
        whole, part = (detector(each)[0] for each in (image, image[..., 64:]))
    cells, border = 64 // detector.network.stride, 224 // detector.network.stride
    torch.testing.assert_close(
        whole[..., cells + border : -border], part[..., border:-border], rtol=1e-3, atol=1e-4 * float(whole.max())
    )


def test_what_sees_the_whole_image_has_a_fixed_tile() -> None:
    assert config("deeplabv3plus").tile(250) == config("cltr").tile(256) == 256
    assert config("unet").tile(250) is None


@pytest.mark.parametrize("network", LIGHT)
def test_a_saved_rival_finds_the_same(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = RivalDetector(config(network)).eval()
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    save_detector(tmp_path / "detector.pth", detector, {"classes": ["a", "b"], "mpp": 0.5})
    loaded, _ = load_detector(tmp_path / "detector.pth")
    assert loaded.config == detector.config and not loaded.training
    with torch.inference_mode():
        for one, two in zip(detector.detect(image, 0.05), loaded.detect(image, 0.05), strict=True):
            assert one.points_N2.tolist() == two.points_N2.tolist()
            np.testing.assert_allclose(one.probabilities_NC, two.probabilities_NC, rtol=1e-4, atol=1e-5)


def test_two_views_are_fused_by_deeplabv3plus() -> None:
    torch.manual_seed(0)
    detector = RivalDetector(config("deeplabv3plus", views=2)).eval()
    image = torch.rand(1, 2, 3, 64, 64)
    with torch.inference_mode():
        (before,) = detector(image)
        image[0, 0] = 0.5  # the wider view
        (after,) = detector(image)
    assert before.shape == (1, 2, 64, 64) and not torch.allclose(before, after)
    with pytest.raises(UserError, match="unet takes up to 1 field"):
        config("unet", views=2)


@pytest.mark.parametrize("network", ["deeplabv3plus", "ucsrnet", "cltr"])
def test_all_of_a_trunk_comes_from_weights_of_resnet50(network: str, real_data: Path) -> None:
    detector = RivalDetector(config(network))
    (trunk,) = detector.trunks()
    report = load_into(trunk, read(real_data / "weights/resnet50_imagenet_v1.safetensors"))
    assert not report.missing and report.used


def test_a_config_names_its_family() -> None:
    assert isinstance(network_of(config("ucsrnet")), RivalDetector)
    assert not isinstance(network_of(DetectorConfig(arch="regnetx_002", channels=8, hidden=8)), RivalDetector)
    with pytest.raises(UserError, match="unet has no decoder 'otm'; choose from: discs"):
        config("unet", decoder="otm")
