"""The learning rate step by step, and the published recipe's numbers."""

import math

import pytest

from shared.command_line import UserError
from ssl_pretrain.plan import Plan
from ssl_pretrain.recipes import MAE_DEMO, MAE_VITB, RECIPES, Recipe


def changed(recipe: Recipe, **fields: object) -> Recipe:
    return Recipe(**{**vars(recipe), **fields})


def test_published_recipe():
    """200 ImageNet epochs at a batch of 4096, lr 2.4e-3 after 40 of them (official PRETRAIN.md; README)."""
    plan = Plan.of(MAE_VITB, ranks=8)
    assert (plan.micro_batch, plan.accumulation) == (256, 2)
    assert plan.steps == 62_557
    assert MAE_VITB.optimiser.peak_lr(4096) == pytest.approx(2.4e-3)
    assert MAE_VITB.optimiser.warmup_samples / 4096 == pytest.approx(12_511, abs=1)
    assert (MAE_VITB.optimiser.betas, MAE_VITB.optimiser.weight_decay) == ((0.9, 0.95), 0.05)
    assert (MAE_VITB.method.mask_ratio, MAE_VITB.method.norm_pix_loss) == (0.75, True)
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}


def test_learning_rate_follows_the_closed_form_at_every_step():
    """util/lr_sched.py: by fractional epochs, here of 10 steps, warm-up 4 epochs of 20."""
    plan = Plan.of(
        changed(
            MAE_VITB,
            batch_size=128,
            samples_seen=128 * 200,
            optimiser=type(MAE_VITB.optimiser)(base_lr=1e-3, warmup_samples=128 * 40, final_lr=1e-5),
        ),
        ranks=1,
    )
    for step in range(200):
        epoch = step / 10
        if epoch < 4:
            expected = 5e-4 * epoch / 4
        else:
            expected = 1e-5 + (5e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (20 - 4)))
        assert plan.learning_rate(step) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("ranks", "batch", "most", "expected"),
    [(1, 64, 256, (64, 1)), (64, 4096, 256, (64, 1)), (2, 36, 16, (9, 2)), (1, 7, 3, (1, 7))],
)
def test_batch_is_divided_exactly(ranks: int, batch: int, most: int, expected: tuple[int, int]):
    plan = Plan.of(changed(MAE_VITB, batch_size=batch, micro_batch=most), ranks)
    assert (plan.micro_batch, plan.accumulation) == expected
    assert plan.micro_batch * plan.accumulation * ranks == batch


def test_early_end_keeps_the_schedule():
    short = Plan.of(changed(MAE_DEMO, max_steps=3), 1)
    assert short.last_step == 3
    assert short.learning_rate(2) == Plan.of(MAE_DEMO, 1).learning_rate(2)


def test_what_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"a batch of 4096 cannot be shared evenly by 3 ranks; .*multiple of 3"):
        Plan.of(MAE_VITB, 3)
    with pytest.raises(UserError, match=r"a batch of 2 cannot be shared evenly by 4 ranks"):
        Plan.of(changed(MAE_DEMO, batch_size=2), 4)
    with pytest.raises(UserError, match=r"the warm-up .* leaves nothing"):
        Plan.of(changed(MAE_VITB, samples_seen=10_000), 1)
