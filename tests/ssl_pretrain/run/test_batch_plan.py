"""How a batch is divided, and how long a run is."""

from pathlib import Path

import pytest

from shared.errors import UserError
from shared.files import write_json
from ssl_pretrain.recipes import MAE_DEMO, MAE_VITB, RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan, require_images_at_once
from tests.ssl_pretrain.stub import changed


@pytest.mark.parametrize(
    ("ranks", "batch", "most", "expected"),
    [(1, 64, 256, (64, 1)), (64, 4096, 256, (64, 1)), (2, 36, 16, (9, 2)), (1, 7, 3, (1, 7))],
)
def test_batch_is_divided_exactly(ranks: int, batch: int, most: int, expected: tuple[int, int]):
    plan = BatchPlan.of(changed(MAE_VITB, batch_size=batch, micro_batch=most), ranks)
    assert (plan.micro_batch, plan.accumulation) == expected
    assert plan.micro_batch * plan.accumulation * ranks == batch


def test_early_end_keeps_the_schedule():
    short = BatchPlan.of(changed(MAE_DEMO, max_steps=3), 1)
    assert short.last_step == 3
    assert BatchPlan.of(changed(MAE_DEMO, max_steps=0), 1).last_step == 0
    assert short.learning_rate(2) == BatchPlan.of(MAE_DEMO, 1).learning_rate(2)


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match=r"a rank's 509 images .* 1 at a time, .* multiple of 2048 with --batch-size"
    ):
        BatchPlan.of(changed(MAE_VITB, batch_size=8 * 509), 8)
    with pytest.raises(UserError, match=r"a batch of 4096 cannot be shared evenly by 3 ranks; .*multiple of 3"):
        BatchPlan.of(MAE_VITB, 3)
    with pytest.raises(UserError, match=r"a batch of 2 cannot be shared evenly by 4 ranks"):
        BatchPlan.of(changed(MAE_DEMO, batch_size=2), 4)
    with pytest.raises(UserError, match=r"the warm-up .* leaves nothing"):
        BatchPlan.of(changed(MAE_VITB, samples_seen=10_000), 1)


@pytest.mark.parametrize(
    ("ranks", "fields", "enough"),
    [
        (64, {}, True),
        (16, {}, True),
        (8, {}, False),  # 2 x 256 each: accumulation shares nothing
        (8, {"micro_batch": 512}, True),
        (64, {"micro_batch": 32}, False),
        (64, {"batch_size": 2048}, False),
        (32, {"batch_size": 8192}, True),
    ],
)
@pytest.mark.parametrize("name", ["swav_resnet50", "swav_resnet50_ihc"])
def test_swav_without_a_queue_needs_4096_images_at_once(name: str, ranks: int, fields: dict, enough: bool):
    recipe = changed(RECIPES[name], **fields)
    if enough:
        require_images_at_once(recipe, ranks)
        return
    other = name.replace("50", "50_256")
    with pytest.raises(UserError, match=rf"{other}, .* GPUs, or --micro-batch {4096 // ranks}"):
        require_images_at_once(recipe, ranks)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"swav_resnet50", "swav_resnet50_ihc"}))
def test_other_recipes_run_on_one_gpu(name: str):
    require_images_at_once(RECIPES[name], 1)


def test_a_run_that_older_releases_began_with_the_other_recipe_is_told_how_to_go_on(tmp_path: Path):
    write_json(tmp_path / "config.json", {"name": "swav_resnet50_256", "in_place_of": "swav_resnet50"})
    with pytest.raises(UserError, match=rf"swav_resnet50_256 --run-dir {tmp_path} --out swav_resnet50.pth"):
        require_images_at_once(changed(RECIPES["swav_resnet50"], run_dir=tmp_path), 1)
