"""The real trunks: exported they are timm's, they start a detector, and they run where tests cannot look."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from shared.model.backbones import create_backbone
from shared.weights import weights_file
from ssl_pretrain.methods.trunks import Encoder, create_trunk
from ssl_pretrain.recipes import RECIPES
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.stub import changed

# Real trunks with small heads; the smallest ViT stands for ViT-B, whose name alone is another.
SMALL = {
    "moco_v2_resnet50": {"hidden_dim": 16, "dim": 8, "queue_length": 8},
    "swav_resnet50": {"hidden_dim": 16, "dim": 8, "prototypes": 8},
    "dino_resnet50": {"hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16},
    "dino_vitb": {"arch": "vit_tiny_patch16_224", "hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16},
    "mae_vitb": {"arch": "vit_tiny_patch16_224", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
}
# Where the exported trunk is: MoCo's queries, DINO's teacher.
EXPORTED = {
    "moco_v2_resnet50": "query.trunk",
    "swav_resnet50": "network.trunk",
    "dino_resnet50": "teacher.trunk",
    "dino_vitb": "teacher.trunk",
    "mae_vitb": "encoder.vit",
}


def images(size: int = 224) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_exports_load_strictly_into_timm_give_the_same_features_and_start_a_detector(name: str, tmp_path: Path):
    torch.manual_seed(0)
    method = changed(RECIPES[name].method, **SMALL[name]).build()
    for parameter in method.parameters():  # away from what a fresh network has
        parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    path, arch = tmp_path / "weights.pth", method.config.arch
    weights_file.write(path, method.export(), {"kind": "backbone", "arch": arch})

    tensors = weights_file.read(path).tensors
    trunk = timm.create_model(arch, num_classes=0).eval()
    trunk.load_state_dict(tensors, strict=True)
    own = method.get_submodule(EXPORTED[name]).eval()
    view_BCHW = images(64 if "resnet" in arch else 224)
    torch.testing.assert_close(trunk(view_BCHW), own(view_BCHW), rtol=1e-3, atol=1e-4)

    detectors = create_backbone(arch).trunk
    report = weights_file.load_into(detectors, weights_file.read(path))
    assert report.missing == [] and set(report.dropped) <= {"norm.weight", "norm.bias", "cls_token"}
    for name, value in detectors.state_dict().items():
        same = name == "pos_embed" or torch.equal(value, tensors[name])  # the class token has a row in it
        assert same, name


def test_resnets_begin_as_torchvisions():
    """Kaiming normal over outgoing connections; norms at 1, those that end a block too; channels last."""
    torch.manual_seed(0)
    trunk = create_trunk("resnet50", 224)
    deviation = trunk.layer2[0].conv2.weight.std().item()
    assert deviation == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert all(block.bn3.weight.eq(1).all() for stage in (trunk.layer1, trunk.layer4) for block in stage)
    assert trunk.layer2[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    feature_BCHW = trunk.forward_features(images(64))
    assert feature_BCHW.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_vits_take_crops_of_other_sizes():
    trunk = create_trunk("vit_tiny_patch16_224", 224).eval()
    assert trunk(images(96)).shape == trunk(images(224)).shape == (2, 192)


@torch.no_grad()
def test_views_of_one_size_go_together_and_come_back_in_order():
    torch.manual_seed(0)
    encoder = Encoder(create_trunk(tiny.RESNET, 64), torch.nn.Identity()).eval()
    views = [images(64), images(64) + 1, images(32), images(32) - 1]
    expected = torch.cat([encoder.trunk(view) for view in views])
    torch.testing.assert_close(encoder(views), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moco_v2_resnet50", "dino_vitb", "mae_vitb"])
def test_compiled_trunks_give_the_same_loss_and_names(name: str):
    method = tiny.method(name, **({"drop_path": 0.0} if name == "dino_vitb" else {})).build()
    sizes = [crop.size for crop in method.config.crops for _ in range(crop.count)]
    views, names = [images(size) for size in sizes], list(method.state_dict())

    def loss() -> Tensor:
        torch.manual_seed(0)
        value = method.loss(views, tiny.FIRST)
        value.backward()
        return value.detach()

    before = {name: value.clone() for name, value in method.state_dict().items()}
    plain = loss()
    method.load_state_dict(before)
    method.compile_trunks()
    torch.testing.assert_close(loss(), plain, rtol=1e-4, atol=1e-5)
    assert list(method.state_dict()) == names
