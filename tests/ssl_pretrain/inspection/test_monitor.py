"""What is seen of a run, and that looking changes nothing in it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.signals import StopSignal
from shared.training import checkpoint
from shared.training.distributed import World
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.shard_set import open_shards
from ssl_pretrain.data.views import Views, ViewsConfig
from ssl_pretrain.inspection import feature_metrics
from ssl_pretrain.inspection.feature_metrics import alarms, features_of, measure
from ssl_pretrain.inspection.monitor import SHEET_SIDE, augmentation_sheet, undisturbed
from ssl_pretrain.inspection.probe_patches import labelled_patches
from ssl_pretrain.methods import Method
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.train import train
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.conftest import write_shards
from tests.ssl_pretrain.labelled import SLIDES, write_labelled
from tests.ssl_pretrain.stub import changed

LARGE, SMALL = Crop(size=32, scale=(0.2, 1.0), count=2), Crop(size=16, scale=(0.05, 0.2), blur=0.5)


def colour(number: int) -> Image.Image:
    """Shades of red."""
    return Image.new("RGB", (40, 40), (number * 100 + 8, 8, 8))


def cells(sheet: Image.Image, rows: int, columns: int) -> list[list[torch.Tensor]]:
    """Return the images of a sheet, row by row."""
    step_y = (sheet.height - 24) // rows
    corners = [[(x * (SHEET_SIDE + 4), 24 + y * step_y) for x in range(columns)] for y in range(rows)]
    pixels_CHW = torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
    return [[pixels_CHW[:, y : y + SHEET_SIDE, x : x + SHEET_SIDE] for x, y in row] for row in corners]


def test_sheet_has_a_row_for_each_patch_and_a_column_for_each_view(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [2, 1], colour))
    sheet = augmentation_sheet(shard_set, Views(ViewsConfig(), (LARGE, SMALL), shard_set.mean, shard_set.std), 3)
    assert sheet.width == 4 * (SHEET_SIDE + 4)
    for row, images in enumerate(cells(sheet, rows=3, columns=4)):
        for image_CHW in images:
            expected_C = torch.tensor([row * 100 + 8, 8, 8]).float()
            assert (image_CHW.float().mean(dim=(1, 2)) - expected_C).abs().max() < 4


def test_sheet_shows_colours_as_they_are_varied(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [2], colour))
    gray = Views(ViewsConfig(grayscale=1.0), (LARGE,), shard_set.mean, shard_set.std)
    for patch_CHW, *views in cells(augmentation_sheet(shard_set, gray, 2), rows=2, columns=3):
        brightness = patch_CHW.float().mean(dim=(1, 2)) @ torch.tensor([0.2989, 0.587, 0.114])
        for view_CHW in views:
            assert (view_CHW.float() - brightness).abs().max() < 4


def lines_of(recipe: PretrainingRecipe) -> list[dict]:
    return [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_patches_come_with_what_the_shards_say(tmp_path: Path):
    """From the beginning of every shard; a short one leaves more to the others; JSON may come first."""
    for number, json_first in enumerate((False, True)):
        shard_set = open_shards(write_labelled(tmp_path / str(number), [2, 9, 9], json_first))
        sample = labelled_patches(shard_set, Crop(size=32, scale=(0.2, 1.0)), most=12)
        origins = [0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15]
        assert sample.slides == [list(SLIDES)[origin % 4] for origin in origins]
        assert sample.biomarkers == [SLIDES[slide] for slide in sample.slides]
        assert sample.patch_BCHW.shape == (12, 3, 32, 32)
        assert len(labelled_patches(shard_set, Crop(size=32, scale=(0.2, 1.0)), most=500).slides) == 20


def test_foreign_shards_have_no_labels(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]):
    sample = labelled_patches(open_shards(shards), Crop(size=32, scale=(0.2, 1.0)), most=10)
    assert sample.slides == sample.biomarkers == [""] * 10
    recipe = tiny.recipe("mae_vitb", shards, tmp_path, max_steps=2, monitor_every=1)
    assert train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal()) == 0
    sentence = (
        "note: knn_slide needs patches of two slides; knn_biomarker needs two biomarkers on two slides each, "
    )
    assert capsys.readouterr().err.count(f"{sentence}named in the KEY.json of the shards\n") == 1
    assert lines_of(recipe)[0].keys() == {"step", "feature_std", "rank_me"}


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_run_that_is_watched_ends_bit_for_bit_as_one_that_is_not(name: str, tmp_path: Path):
    """After every step, against never; and what is logged."""
    shards = write_labelled(tmp_path / "shards", [24, 16])
    states = []
    for every in (1, 0):
        folder = tmp_path / f"every-{every}"
        recipe = tiny.recipe(name, shards, folder, max_steps=4, monitor_every=every, checkpoint_every=4 - every)
        assert train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal()) == 0
        states.append(checkpoint.resume(recipe.run_dir, recipe.name))
        looks = [line for line in lines_of(recipe) if "feature_std" in line]
        assert [line["step"] for line in looks] == ([0, 1, 2, 3, 4] if every else [])
        for line in looks:
            assert 0 <= line["feature_std"] < 1.2 and 1 <= line["rank_me"] <= 32
            assert line["knn_slide_chance"] == 1 / 4 and line["knn_biomarker_chance"] == 1 / 2
        steps = [line for line in lines_of(recipe) if "loss" in line]
        assert [line["step"] for line in steps] == [1, 2, 3, 4]
        _check_measures(recipe, steps)
    watched, alone = states
    for part in ("networks", "optimiser", "position"):
        _assert_same(watched[part], alone[part])


def _check_measures(recipe: PretrainingRecipe, steps: list[dict]) -> None:
    """Check what each method tells of its own in every step."""
    own = {
        "moco_v2": {"queue_accuracy": 1},
        "swav": {"prototypes_used": min(1, 2 * recipe.micro_batch / 10)},
        "dino": {"teacher_entropy": math.log(20), "divergence": 5},
        "mae": {},
    }[recipe.method.name]
    for line in steps:
        assert own.keys() == line.keys() & {"queue_accuracy", "prototypes_used", "teacher_entropy", "divergence"}
        assert all(0 <= line[name] <= most + 1e-4 for name, most in own.items())


def _assert_same(found: object, expected: object) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            _assert_same(found[name], expected[name])
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


def test_looking_leaves_modes_generators_and_statistics(tmp_path: Path):
    method: Method = tiny.method("dino_resnet50").build().train()
    method.student.trunk.bn1.eval()  # on purpose another than the rest
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="drawn"), undisturbed(method):
        assert not any(module.training for module in method.modules()) and not torch.is_grad_enabled()
        torch.rand(100)
        method.backbone()(torch.randn(4, 3, 64, 64))
        raise RuntimeError("drawn")
    assert torch.equal(torch.rand(1), expected) and torch.is_grad_enabled()
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_features_are_those_of_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_metrics, "AT_ONCE", 3)
    trunk = tiny.method("dino_vitb").build().eval().backbone()
    patch_BCHW = torch.randint(0, 256, (7, 3, 64, 64), dtype=torch.uint8)
    found_ND = features_of(trunk, patch_BCHW, lambda image_BCHW: image_BCHW.float() / 255 - 0.5)
    with torch.no_grad():
        torch.testing.assert_close(found_ND, trunk(patch_BCHW.float() / 255 - 0.5), rtol=1e-4, atol=1e-5)


def test_alarms_say_what_was_measured():
    fine = {"feature_std": 0.9, "rank_me": 100.0}
    assert alarms(fine, 512) == {}
    collapsed = alarms({"feature_std": 0.05, "rank_me": 2.0}, 512)
    assert collapsed["feature_std"].startswith("features differ little between patches: deviation 0.050")
    assert "RankMe 2.0 of at most 512" in collapsed["rank_me"]
    assert alarms({"feature_std": 0.05, "rank_me": 2.0}, 512, may_collapse=False) == {}
    shortcut = fine | {"knn_slide": 0.93, "knn_slide_chance": 0.25}
    shortcut |= {"knn_biomarker": 0.55, "knn_biomarker_chance": 0.5}
    assert (
        "its slide in 93% (chance 25%), but its biomarker, judged by other slides, in 55% (chance 50%)"
        in (alarms(shortcut, 512)["knn_slide"])
    )
    assert alarms(shortcut | {"knn_biomarker": 0.8}, 512) == {}


def test_a_collapse_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Learning rates that do not suit the network make it say the same of every patch; here it is told to."""
    monkeypatch.setattr(feature_metrics, "features_of", lambda *_: torch.ones(40, 32))
    recipe = tiny.recipe("dino_vitb", write_labelled(tmp_path / "shards", [40]), tmp_path, max_steps=3)
    assert train(changed(recipe, monitor_every=1), World(0, 0, 1, torch.device("cpu")), StopSignal()) == 0
    err = capsys.readouterr().err
    assert err.count("warning: after step 1 features differ little between patches: deviation 0.000") == 1
    assert err.count("features differ little") == 1
    assert lines_of(recipe)[-1]["feature_std"] == 0
    assert measure(
        torch.ones(40, 32), labelled_patches(open_shards(recipe.shards), Crop(size=32, scale=(1, 1)), 40)
    )
