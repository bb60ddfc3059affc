"""`--init`: trunks of all methods go on from weights of others; what is beside them starts fresh."""

from pathlib import Path

import pytest
import timm
import torch

from finetune.training.initialisation import initial_detector
from shared.errors import UserError
from shared.model import dpa_p2pnet
from shared.signals import StopSignal
from shared.training.distributed import World
from shared.weights import weights_file
from ssl_pretrain.inspection.backbone_sources import open_subject
from ssl_pretrain.methods import trunks
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.run.initial_weights import check_init, load_init
from ssl_pretrain.train import train
from tests.conftest import InProcess
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.stub import changed

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.15)


def write_trunk(path: Path, arch: str) -> dict[str, torch.Tensor]:
    """Weights as another project leaves them, with class token, head and position embeddings of 64 px."""
    torch.manual_seed(7)
    trunk = timm.create_model(arch, num_classes=5, **({"img_size": 64} if arch == tiny.VIT else {}))
    weights_file.write(path, trunk.state_dict(), {"arch": arch, "mean": MEAN, "std": STD})
    return trunk.state_dict()


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_method_goes_on_from_the_file(name: str, tmp_path: Path) -> None:
    recipe = changed(tiny.recipe(name, tmp_path, tmp_path), init=tmp_path / "w.pth")
    given = write_trunk(tmp_path / "w.pth", recipe.method.arch)
    method, fresh = recipe.method.build(), recipe.method.build()
    load_init(recipe, method)
    for trunk in method.trunks():  # of student and teacher, query and key
        state = trunk.state_dict()
        assert all(torch.equal(state[key], given[key]) for key in state if key != "pos_embed")
    beside = [key for key in method.state_dict() if "trunk" not in key and ".vit." not in key]
    assert beside and all(method.state_dict()[key].shape == fresh.state_dict()[key].shape for key in beside)


@pytest.mark.parametrize("name", ["mae_vitb", "moco_v2_resnet50"])
def test_a_whole_run_exports_what_it_went_on_from(name: str, shards: Path, tmp_path: Path, world: World) -> None:
    """At a learning rate of nearly zero; in the normalisation of the weights; said in the card."""
    recipe = tiny.recipe(name, shards, tmp_path, init=tmp_path / "w.pth", max_steps=2, monitor_every=0)
    given = write_trunk(tmp_path / "w.pth", recipe.method.arch)
    recipe = changed(recipe, optimiser=changed(recipe.optimiser, base_lr=1e-12))
    assert train(recipe, world, StopSignal()) == 0
    exported = weights_file.read(recipe.out)
    for key, tensor in exported.tensors.items():
        if "running" not in key and "num_batches" not in key and key != "pos_embed":
            torch.testing.assert_close(tensor, given[key], rtol=0, atol=1e-9)
    assert (exported.mean, exported.std) == (MEAN, STD)
    assert exported.metadata["init"]["file"] == str(tmp_path / "w.pth")
    card = recipe.out.with_suffix(".md").read_text()
    assert "w.pth" in card and f"{recipe.method.fresh} fresh" in card
    inspected = open_subject(recipe.run_dir)
    assert (tuple(inspected.mean), tuple(inspected.std)) == (MEAN, STD)
    (tmp_path / "again").mkdir()
    resumed = changed(recipe, max_steps=3)
    assert train(resumed, world, StopSignal()) == 0
    with pytest.raises(UserError, match="was started with init="):
        train(changed(resumed, init=None, max_steps=4), world, StopSignal())


@pytest.mark.parametrize(
    ("name", "arch", "way_out"),
    [
        ("mae_vitb", tiny.RESNET, "take a recipe for it"),
        ("dino_resnet50", tiny.VIT, f"add --method.arch {tiny.VIT}"),
    ],
)
def test_another_architecture_is_refused(name: str, arch: str, way_out: str, tmp_path: Path) -> None:
    """MAE cannot train a ResNet, so its option for the architecture is no way out."""
    recipe: PretrainingRecipe = tiny.recipe(name, tmp_path, tmp_path, init=tmp_path / "w.pth")
    write_trunk(tmp_path / "w.pth", arch)
    with pytest.raises(UserError, match=f"is a {arch}, .*; {way_out}"):
        check_init(recipe)


def test_plan_says_it(tmp_path: Path, in_process: InProcess) -> None:
    from ssl_pretrain.plan import main

    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    words = ("mae_demo", "--gpus", 1, "--images-per-second", 100, "--init", tmp_path / "vit.pth")
    code, printed, _ = in_process(main, *words)
    assert code == 0 and f"init    decoder fresh, vit_tiny_patch16_224 from {tmp_path / 'vit.pth'}" in printed
    code, _, refused = in_process(main, "mae_vitb", "--init", tmp_path / "vit.pth")
    assert code == 2 and "add --method.arch vit_tiny_patch16_224" in refused


def test_layer_scaled_trunks_are_trained_and_handed_on(tmp_path: Path) -> None:
    """UNI-like weights (patches of 14 px, layer scale) go through MAE's encoder and into a detector."""
    arch = "vit_small_patch14_dinov2"
    source = timm.create_model(arch, img_size=56, num_classes=0, init_values=0.3)
    torch.save(source.state_dict(), tmp_path / "scaled.pth")
    recipe = tiny.recipe("mae_vitb", tmp_path, tmp_path, init=tmp_path / "scaled.pth")
    recipe = changed(recipe, method=changed(recipe.method, arch=arch, image_size=64))
    check_init(recipe)
    method = recipe.method.build()
    assert load_init(recipe, method).missing == []
    assert torch.equal(method.export()["blocks.3.ls1.gamma"], source.blocks[3].ls1.gamma)
    weights_file.write(tmp_path / "mae.pth", method.export(), {"kind": "backbone", "arch": arch})
    start = initial_detector(dpa_p2pnet.DetectorConfig(), str(tmp_path / "mae.pth"), None)
    assert torch.equal(start.detector.backbone.trunk.blocks[3].ls1.gamma, source.blocks[3].ls1.gamma)


def test_a_class_token_without_a_position_gets_none(tmp_path: Path) -> None:
    """UNI2-h and H-optimus add no position to their class token: zero is the same."""
    source = timm.create_model(tiny.VIT, img_size=64, num_classes=0, no_embed_class=True).eval()
    trunk = trunks.create_trunk(tiny.VIT, 64).eval()
    weights_file.load_into(trunk, weights_file.Weights(tmp_path, source.state_dict()))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trunk(image), source(image))
