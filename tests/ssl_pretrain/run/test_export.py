"""The weights that a run leaves."""

import re
from pathlib import Path

import pytest
import torch

from finetune.training.initialisation import initial_detector
from shared.model import dpa_p2pnet
from shared.signals import StopSignal
from shared.training.distributed import World
from shared.weights import weights_file
from ssl_pretrain.recipes import MAE_DEMO
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.export import is_finished
from ssl_pretrain.run.setup import open_run, prepare
from ssl_pretrain.train import train
from tests.ssl_pretrain import stub, tiny
from tests.ssl_pretrain.labelled import write_labelled
from tests.ssl_pretrain.stub import changed


def test_what_is_exported_and_when_a_run_counts_as_finished(shards: Path, tmp_path: Path, world: World):
    recipe = stub.recipe(shards, tmp_path, normalisation="imagenet", max_steps=4)
    assert train(recipe, world, StopSignal()) == 0
    exported = weights_file.read(recipe.out)
    line = recipe.method.built[-1].linear
    assert exported.tensors.keys() == {"weight", "bias"}
    assert torch.equal(exported.tensors["weight"], line.weight.detach())
    expected = {"kind": "backbone", "method": "stub", "recipe": "stub", "image_size": 16, "samples_seen": 160}
    expected |= {"steps": 4, "batch_size": 40, "patches": 40, "harvest": {"patch_mpp": 0.25}}
    assert expected.items() <= exported.metadata.items()
    assert exported.mean == (0.485, 0.456, 0.406) and exported.std == (0.229, 0.224, 0.225)

    plan, shard_set = prepare(recipe, world)
    run = open_run(recipe, shard_set, world)
    assert run.id == exported.metadata["run_id"]
    recipe.out.unlink()
    assert is_finished(plan, run) and recipe.out.exists()  # the copy is made again
    assert not is_finished(BatchPlan.of(changed(recipe, max_steps=5), 1), run)
    inside = recipe.run_dir / "out.pth"
    inside.write_bytes(inside.read_bytes()[:100])
    assert not is_finished(plan, run)
    run.close()


def test_card_goes_with_the_weights(shards: Path, tmp_path: Path, world: World):
    recipe = stub.recipe(shards, tmp_path, max_steps=1)
    card = recipe.out.with_suffix(".md")
    card.write_text("my notes")
    assert train(recipe, world, StopSignal()) == 0
    assert card.read_text() == (recipe.run_dir / "out.md").read_text()
    assert card.with_name("out.md.bak").read_text() == "my notes"
    for path in (card, recipe.out):
        path.unlink()
    assert train(recipe, world, StopSignal()) == 0 and card.exists()  # the copies are made again
    assert train(changed(recipe, max_steps=2), world, StopSignal()) == 0
    assert "80 images in 2 steps" in card.read_text()
    assert card.with_name("out.md.bak").read_text() == "my notes"  # the run's own card is replaced


@pytest.mark.parametrize(("name", "suffix"), [("dino_vitb", ".pth"), ("swav_resnet50", ".safetensors")])
def test_what_a_card_says(name: str, suffix: str, tmp_path: Path, world: World):
    shards = write_labelled(tmp_path / "shards", [24, 16])
    recipe = tiny.recipe(name, shards, tmp_path, max_steps=2, monitor_every=0, out=tmp_path / f"mine{suffix}")
    assert train(recipe, world, StopSignal()) == 0
    card = (tmp_path / "mine.md").read_text()
    for words in (
        f"# mine{suffix}\n",
        f"the recipe `{name}`",
        "16 images in 2 steps",
        "8 images, accumulated from 4 at once",
        "40 patches of 4 slides",
        "Ki-67: 20 patches of 2 slides; PD-L1: 20 patches of 2 slides",
        "mean (0.7, 0.6, 0.65), divided by the deviation (0.2, 0.21, 0.19)",
        f"torch {torch.__version__.partition('+')[0]}",
        f"git {weights_file.read(recipe.out).metadata['git_commit']}",
    ):
        assert words in card, words


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["dino_vitb", "mae_vitb", "moco_v2_resnet50", "swav_resnet50"])
def test_lines_on_the_card_load_the_weights_with_timm(
    name: str, suffix: str, tmp_path: Path, shards: Path, world: World, monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny.recipe(name, shards, tmp_path, max_steps=2, monitor_every=0, out=tmp_path / f"mine{suffix}")
    networks: list[torch.nn.Module] = []
    build = type(recipe.method).build
    monkeypatch.setattr(
        type(recipe.method), "build", lambda config: networks.append(build(config)) or networks[-1]
    )
    assert train(recipe, world, StopSignal()) == 0
    lines = re.search(r"```python\n(.*?)```", (tmp_path / "mine.md").read_text(), re.DOTALL)[1]
    assert len(lines.splitlines()) == 4
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(lines, made)
    size = recipe.method.image_size
    image_BCHW = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = networks[-1].eval().backbone()(image_BCHW)
        torch.testing.assert_close(made["model"](image_BCHW), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_start_a_detector(suffix: str, tmp_path: Path, shards: Path, world: World):
    method = changed(MAE_DEMO.method, image_size=64, decoder_dim=32, decoder_depth=1)
    recipe = tiny.recipe("mae_vitb", shards, tmp_path, method=method, max_steps=1, out=tmp_path / f"mine{suffix}")
    assert train(changed(recipe, monitor_every=0), world, StopSignal()) == 0
    start = initial_detector(dpa_p2pnet.DetectorConfig(), str(recipe.out), None)
    tensors = weights_file.read(recipe.out).tensors
    trunk = start.detector.trunks()[0].state_dict()
    assert trunk.keys() == start.loaded and start.detector.config.mean == (0.7, 0.6, 0.65)
    assert torch.equal(trunk["blocks.3.attn.qkv.weight"], tensors["blocks.3.attn.qkv.weight"])
