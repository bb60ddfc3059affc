"""The learning rate step by step."""

import math

import pytest

from ssl_pretrain.plan import Plan
from ssl_pretrain.recipes import MAE_VITB
from tests.ssl_pretrain.stub import changed


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
