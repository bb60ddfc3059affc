"""Where the trunk's weights come from, and what that means for batch norms."""

from pathlib import Path

import pytest
import timm
import torch

from finetune.initialisation import held_batch_norms, initial_detector
from shared import detector as core
from shared.command_line import UserError
from shared.weights import write

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    metadata = {"kind": "backbone", "arch": TINY, "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.1]}
    write(path, timm.create_model(TINY).state_dict(), metadata)
    return path


def test_arch_and_normalisation_come_from_the_file(tiny_weights: Path) -> None:
    detector, loaded, _ = initial_detector(core.Config(classes=2), str(tiny_weights), None)
    assert detector.config.arch == TINY
    assert (detector.config.mean, detector.config.std) == ((0.7, 0.6, 0.7), (0.2, 0.2, 0.1))
    source = timm.create_model(TINY)
    source.load_state_dict(torch.load(tiny_weights, weights_only=True)["state_dict"])
    trunk = detector.backbone.trunk.state_dict()
    assert len(loaded) == len(trunk)
    for name in ("patch_embed.proj.weight", "blocks.11.mlp.fc2.bias"):
        assert torch.equal(trunk[name], source.state_dict()[name])
    assert held_batch_norms(detector.backbone.trunk, loaded) == []


def test_only_batch_norms_with_loaded_statistics_are_held(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet50").state_dict(), path)
    detector, loaded, _ = initial_detector(core.Config(), str(path), None)
    assert len(held_batch_norms(detector.backbone.trunk, loaded)) == 53
    detector, loaded, _ = initial_detector(core.Config(), "random", None)
    assert held_batch_norms(detector.backbone.trunk, loaded) == []


def test_files_of_the_wrong_kind_are_refused_in_a_sentence(tmp_path: Path, tiny_weights: Path) -> None:
    detector = core.Detector(core.Config(arch=TINY))
    core.save_detector(tmp_path / "detector.pth", detector, {"classes": ["cell"]})
    torch.save({"unknown.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.pth").write_bytes(tiny_weights.read_bytes()[:100_000])
    for name, sentence in {
        "detector.pth": "is a whole detector",
        "other.pth": "is no ResNet-50 and no plain ViT",
        "text.pth": "cut short or holds more than tensors",
        "cut.pth": "cut short or holds more than tensors",
        "none.pth": "there is no weights file",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            initial_detector(core.Config(), str(tmp_path / name), None)
        assert name in str(caught.value)
    with pytest.raises(UserError, match=r"fits only .* --arch"):
        initial_detector(core.Config(), str(tiny_weights), "resnet50")


def test_imagenet_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be fetched from timm's hub .*pass that file with --init"):
        initial_detector(core.Config(), "imagenet", "resnet50")
