"""The weights that a run leaves."""

from pathlib import Path

import torch

from shared import weights
from shared.distributed import World
from shared.stop_signal import StopSignal
from ssl_pretrain.export import is_finished
from ssl_pretrain.plan import Plan
from ssl_pretrain.start import open_run, prepare
from ssl_pretrain.train import train
from tests.ssl_pretrain import stub
from tests.ssl_pretrain.stub import changed


def test_what_is_exported_and_when_a_run_counts_as_finished(shards: Path, tmp_path: Path, world: World):
    recipe = stub.recipe(shards, tmp_path, normalisation="imagenet", max_steps=4)
    assert train(recipe, world, StopSignal()) == 0
    exported = weights.read(recipe.out)
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
    assert not is_finished(Plan.of(changed(recipe, max_steps=5), 1), run)
    inside = recipe.run_dir / "out.pth"
    inside.write_bytes(inside.read_bytes()[:100])
    assert not is_finished(plan, run)
    run.close()
