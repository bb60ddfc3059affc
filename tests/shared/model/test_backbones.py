import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from shared.errors import UserError
from shared.model.backbones import BACKBONES, create_backbone, fold_batch_norms
from shared.weights.weights_file import Weights, load_into, read, write


def test_unknown_name_is_answered_with_the_list():
    with pytest.raises(UserError, match=r"no backbone 'resnet51'; choose one of resnet50, vit_tiny_patch16_224"):
        create_backbone("resnet51")
    assert {"vit_small_patch16_224", "vit_base_patch16_224"} <= BACKBONES.keys()


@pytest.mark.parametrize("arch", ["resnet50", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_four_maps_at_strides_4_to_32(arch, size):
    backbone = create_backbone(arch).eval()
    with torch.inference_mode():
        maps = backbone(torch.randn(2, 3, *size))
    assert len(maps) == len(backbone.channels) == 4
    for level, channels, stride in zip(maps, backbone.channels, (4, 8, 16, 32), strict=True):
        assert level.shape == (2, channels, size[0] // stride, size[1] // stride)


@pytest.mark.parametrize("arch", ["resnet50", "vit_tiny_patch16_224"])
def test_every_parameter_takes_part(arch):
    """A parameter without a gradient would stop distributed training."""
    backbone = create_backbone(arch)
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum(level.square().mean() for level in maps).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("arch", ["resnet50", "vit_tiny_patch16_224"])
def test_batch_norm_is_plain_and_nothing_drops_by_default(arch):
    kinds = {type(module).__name__ for module in create_backbone(arch).modules()}
    assert {kind for kind in kinds if "BatchNorm" in kind} == {"BatchNorm2d"}


def test_drop_path_is_handed_on():
    """In training, two passes differ when whole branches are dropped at random."""
    image = torch.randn(8, 3, 64, 64)
    for arch in ("resnet50", "vit_tiny_patch16_224"):
        for drop_path, differs in ((0.0, False), (0.5, True)):
            backbone = create_backbone(arch, drop_path).train()
            for name, parameter in backbone.named_parameters():
                if name.endswith("bn3.weight"):
                    torch.nn.init.ones_(parameter)  # zero in timm: the branches would be silent anyway
            first, second = backbone(image)[3], backbone(image)[3]
            assert torch.equal(first, second) is not differs, (arch, drop_path)


def test_resnet_takes_timms_weights_and_gives_timms_features():
    torch.manual_seed(0)
    reference = timm.create_model("resnet50", zero_init_last=False).eval()
    backbone = create_backbone("resnet50").eval()
    report = load_into(backbone.trunk, Weights(Path("resnet50.pth"), reference.state_dict()))
    assert (report.dropped, report.missing) == (["fc.bias", "fc.weight"], [])
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        expected = reference.forward_intermediates(image, indices=(1, 2, 3, 4), intermediates_only=True)
        for level, wanted in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(level, wanted)


def test_resnet_takes_published_weights(real_data):
    weights = read(real_data / "weights" / "resnet50_imagenet_v1.safetensors")
    backbone = create_backbone(weights.arch)
    report = load_into(backbone.trunk, weights)
    assert (report.dropped, report.missing) == (["fc.bias", "fc.weight"], [])
    assert backbone.trunk.conv1.weight.dtype == torch.float32  # half precision in the file


def test_vit_takes_an_exported_mae(tmp_path):
    """timm's own ViT has a class token, a final norm and a head, none of which a pyramid needs."""
    source = timm.create_model("vit_tiny_patch16_224")
    write(tmp_path / "mae.pth", source.state_dict(), {"arch": "vit_tiny_patch16_224", "kind": "backbone"})
    weights = read(tmp_path / "mae.pth")
    backbone = create_backbone(weights.arch)
    report = load_into(backbone.trunk, weights)
    assert report.dropped == ["cls_token", "head.bias", "head.weight", "norm.bias", "norm.weight"]
    assert report.missing == []
    # The 196 places keep their embeddings; the class token's own is left out.
    torch.testing.assert_close(backbone.trunk.pos_embed, source.pos_embed[:, 1:])
    assert torch.equal(backbone.trunk.blocks[11].mlp.fc2.weight, source.blocks[11].mlp.fc2.weight)


def test_vit_base_takes_at_least_95_percent():
    with torch.device("meta"):
        names = timm.create_model("vit_base_patch16_224").state_dict()
    weights = Weights(Path("mae.pth"), {name: torch.empty(tensor.shape) for name, tensor in names.items()})
    trunk = create_backbone(weights.arch).trunk
    report = load_into(trunk, weights)
    assert len(report.used) == len(trunk.state_dict()) == 147
    assert {name.split(".")[0] for name in report.dropped} == {"cls_token", "norm", "head"}


def test_other_networks_weights_are_refused():
    weights = Weights(Path("other.pth"), timm.create_model("vit_tiny_patch16_224").state_dict())
    with pytest.raises(UserError, match=r"other\.pth fits only 0 of \d+ tensors"):
        load_into(create_backbone("resnet50").trunk, weights)


def test_folded_batch_norms_give_the_same_maps() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("regnetx_002")
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    folded = copy.deepcopy(backbone.eval())
    fold_batch_norms(folded)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == 44
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    image_BCHW = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        for ours, theirs in zip(folded(image_BCHW), backbone(image_BCHW), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
