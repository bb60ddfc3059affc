"""Where the trunk's weights come from, and what that means for batch norms."""

import argparse
import dataclasses
from pathlib import Path

import pytest
import timm
import torch

from finetune.training.initialisation import initial_detector, pretrained_batch_norms
from shared.errors import UserError
from shared.model import dpa_p2pnet as core
from shared.model.detector_file import load_detector, save_detector
from shared.model.rivals.rival_detector import RivalConfig
from shared.weights.weights_file import write

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    metadata = {"kind": "backbone", "arch": TINY, "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.1]}
    write(path, timm.create_model(TINY).state_dict(), metadata)
    return path


def test_arch_and_normalisation_come_from_the_file(tiny_weights: Path) -> None:
    detector, loaded, _ = initial_detector(core.DetectorConfig(classes=2), str(tiny_weights), None)
    assert detector.config.arch == TINY
    assert (detector.config.mean, detector.config.std) == ((0.7, 0.6, 0.7), (0.2, 0.2, 0.1))
    source = timm.create_model(TINY)
    source.load_state_dict(torch.load(tiny_weights, weights_only=True)["state_dict"])
    trunk = detector.backbone.trunk.state_dict()
    assert len(loaded) == len(trunk)
    for name in ("patch_embed.proj.weight", "blocks.11.mlp.fc2.bias"):
        assert torch.equal(trunk[name], source.state_dict()[name])
    assert pretrained_batch_norms(detector.backbone.trunk, loaded) == []


def test_another_project_s_file_is_taken_and_accounted_for(tmp_path: Path) -> None:
    source = timm.create_model("resnet50").state_dict()
    student = {f"module.backbone.{name}": torch.zeros(()).expand(tensor.shape) for name, tensor in source.items()}
    teacher = {f"module.backbone.{name}": tensor for name, tensor in source.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"student": student, "teacher": teacher, "args": argparse.Namespace(arch="resnet50")}, path)
    detector, loaded, origin = initial_detector(core.DetectorConfig(), str(path), None)
    path.unlink()
    trunk = detector.backbone.trunk.state_dict()
    assert loaded == trunk.keys()
    assert all(torch.equal(trunk[name], source[name]) for name in trunk)
    title, used, dropped, missing = origin.splitlines()
    assert title == (
        f'resnet50 from {path} (torchvision names under "module.backbone." in "teacher"), '
        "ImageNet's mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225"
    )
    assert used.split()[:2] == ["used", "318"]
    assert (dropped, missing) == ("  dropped    2  fc (2)", "  missing    0")


def test_a_detector_on_a_vit_with_layer_scale_is_saved_and_built_again(tmp_path: Path) -> None:
    """Patches of 14 px and registers end here: the file that training writes knows nothing of them."""
    with torch.device("meta"):
        source = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0)
    source = source.to_empty(device="cpu")
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(source.state_dict(), tmp_path / "dinov2.pth")
    detector, loaded, _ = initial_detector(core.DetectorConfig(classes=2), str(tmp_path / "dinov2.pth"), None)
    assert detector.config.arch == "vit_small_patch14_dinov2"
    assert loaded == detector.backbone.trunk.state_dict().keys()
    save_detector(tmp_path / "detector.pth", detector, {})
    again, _ = load_detector(tmp_path / "detector.pth")
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(again(image).points_BN2, detector.eval()(image).points_BN2)


def test_every_field_of_view_starts_from_the_same_weights(tiny_weights: Path) -> None:
    detector, _, _ = initial_detector(core.DetectorConfig(views=2), str(tiny_weights), None)
    own, wider = (trunk.state_dict() for trunk in detector.trunks())
    assert all(torch.equal(own[name], wider[name]) for name in own)


def test_every_field_of_view_is_standardised_as_the_weights_want(tiny_weights: Path) -> None:
    detector, _, _ = initial_detector(core.DetectorConfig(views=2), str(tiny_weights), None)
    seen = {}
    for view, trunk in zip(("own", "wider"), detector.trunks(), strict=True):
        trunk.patch_embed.proj.register_forward_pre_hook(
            lambda _, given, view=view: seen.update({view: given[0].mean((0, 2, 3))})
        )
    mean, std = torch.tensor((0.7, 0.6, 0.7)), torch.tensor((0.2, 0.2, 0.1))
    images_KC = torch.stack([mean - std, mean + 2 * std])  # widest first
    with torch.inference_mode():
        detector.eval()(images_KC[None, :, :, None, None].expand(1, 2, 3, 64, 64))
    torch.testing.assert_close(seen, {"own": torch.full((3,), 2.0), "wider": torch.full((3,), -1.0)})


def test_only_batch_norms_with_loaded_statistics_are_held(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet50").state_dict(), path)
    detector, loaded, _ = initial_detector(core.DetectorConfig(), str(path), None)
    assert len(pretrained_batch_norms(detector.backbone.trunk, loaded)) == 53
    detector, loaded, _ = initial_detector(core.DetectorConfig(), "random", None)
    assert pretrained_batch_norms(detector.backbone.trunk, loaded) == []


def test_files_of_the_wrong_kind_are_refused_in_a_sentence(tmp_path: Path, tiny_weights: Path) -> None:
    torch.save({"unknown.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.pth").write_bytes(tiny_weights.read_bytes()[:100_000])
    for name, sentence in {
        "other.pth": "is no ResNet-50 and no plain ViT",
        "text.pth": "is no file of torch.save",
        "cut.pth": "cut short or holds more than tensors",
        "none.pth": "there is no weights file",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            initial_detector(core.DetectorConfig(), str(tmp_path / name), None)
        assert name in str(caught.value)
    with pytest.raises(UserError, match=r"fits only .* --arch"):
        initial_detector(core.DetectorConfig(), str(tiny_weights), "resnet50")
    unet = RivalConfig(classes=2, network="unet", decoder="discs", mpp=0.5)
    with pytest.raises(UserError, match="the recipe's network has no trunk for the weights"):
        initial_detector(unet, str(tiny_weights), None)


def test_imagenet_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be fetched from timm's hub .*pass that file with --init"):
        initial_detector(core.DetectorConfig(), "imagenet", "resnet50")
    with pytest.raises(UserError, match="timm has no weights of vit_giant24_patch14_dinov2; pass a file"):
        initial_detector(core.DetectorConfig(), "imagenet", "vit_giant24_patch14_dinov2")
    with pytest.raises(UserError, match="there is no backbone 'resnet51'"):
        initial_detector(core.DetectorConfig(), "imagenet", "resnet51")


@pytest.mark.parametrize("switches", [{}, {"multi_scale": False, "deformable": False}])
def test_a_detector_goes_on_with_other_classes(switches: dict[str, bool], tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"arch": "regnetx_002", "channels": 16, "hidden": 16, "interval": 8, **switches}
    source = core.DPAP2PNet(core.DetectorConfig(classes=2, mean=(0.7, 0.6, 0.7), **small)).eval()
    save_detector(tmp_path / "detector.pth", source, {"classes": ["tumour", "stroma"]})
    wanted = core.DetectorConfig(classes=3, interval=8)
    classes = ("stroma", "lymphocyte", "plasma cell")
    detector, loaded, report = initial_detector(wanted, str(tmp_path / "detector.pth"), None, classes)
    assert detector.config == dataclasses.replace(source.config, classes=3)
    assert loaded == detector.backbone.trunk.state_dict().keys()
    assert "stroma\n" in report and report.endswith("lymphocyte, plasma cell")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before, after = source(image), detector.eval()(image)
    torch.testing.assert_close(after.points_BN2, before.points_BN2)
    torch.testing.assert_close(after.logits_BNC[..., [0, 3]], before.logits_BNC[..., [1, 2]])


def test_a_detector_keeps_its_architecture(tmp_path: Path) -> None:
    save_detector(
        tmp_path / "detector.pth", core.DPAP2PNet(core.DetectorConfig(arch="regnetx_002")), {"classes": ["cell"]}
    )
    for config, arch, option in (
        (core.DetectorConfig(views=2), None, "--views"),
        (core.DetectorConfig(), "resnet50", "--arch"),
    ):
        with pytest.raises(UserError, match=option):
            initial_detector(config, str(tmp_path / "detector.pth"), arch, ("cell",))


@pytest.mark.parametrize(("wanted", "kept"), [(0.0, 4.0), (3.0, 3.0)])
def test_a_detector_keeps_its_distinct_proposals_unless_told(tmp_path: Path, wanted: float, kept: float) -> None:
    source = core.DetectorConfig(arch="regnetx_002", distinct=4.0)
    save_detector(tmp_path / "detector.pth", core.DPAP2PNet(source), {"classes": ["cell"]})
    config = core.DetectorConfig(arch="regnetx_002", distinct=wanted)
    start = initial_detector(config, str(tmp_path / "detector.pth"), None, ("cell",))
    assert start.detector.config.distinct == kept
