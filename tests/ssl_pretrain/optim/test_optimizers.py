"""Schedules step by step; groups, clipping and LARC against their definitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from ssl_pretrain.optim import optimizers
from ssl_pretrain.optim.optimizers import clip_gradients, set_rates
from ssl_pretrain.recipes import MAE_VITB, RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.stub import changed


def test_learning_rate_follows_the_closed_form_at_every_step():
    """util/lr_sched.py: by fractional epochs, here of 10 steps, warm-up 4 epochs of 20."""
    optimiser = changed(MAE_VITB.optimiser, base_lr=1e-3, warmup_samples=128 * 40, warmup_lr=1e-4, final_lr=1e-5)
    plan = BatchPlan.of(changed(MAE_VITB, batch_size=128, samples_seen=128 * 200, optimiser=optimiser), ranks=1)
    for step in range(200):
        epoch = step / 10
        if epoch < 4:
            expected = 1e-4 + (5e-4 - 1e-4) * epoch / 4
        else:
            expected = 1e-5 + (5e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (20 - 4)))
        assert plan.learning_rate(step) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_weight_decay_follows_a_cosine_from_the_first_step_on():
    """DINO's cosine_scheduler without a warm-up."""
    recipe = changed(RECIPES["dino_vitb"], batch_size=128, samples_seen=128 * 200)
    plan = BatchPlan.of(changed(recipe, optimiser=changed(recipe.optimiser, warmup_samples=0)), ranks=1)
    for step in range(200):
        expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 200))
        assert plan.weight_decay(step) == pytest.approx(expected)


def test_rates_reach_the_groups_and_undecayed_ones_stay_so():
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    for config in (optimizers.AdamW(base_lr=1), optimizers.SGD(base_lr=1), optimizers.LARC(base_lr=1)):
        optimiser = config.build(network)
        set_rates(optimiser, 0.25, 0.125)
        assert [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups] == [
            (0.25, 0.125),
            (0.25, 0),
        ]


@pytest.mark.parametrize("name", tiny.NAMES)
def test_parameter_groups_are_those_of_the_official_codes(name: str):
    """MoCo and SwAV decay everything; MAE and DINO no biases and no 1-D parameters. What is fixed is in none."""
    method = tiny.method(name).build()
    name_of = {id(p): parameter for parameter, p in method.named_parameters()}
    groups = RECIPES[name].optimiser.build(method).param_groups
    decayed, others = ({name_of[id(p)] for p in group["params"]} for group in groups)
    assert decayed | others == {name for name, p in method.named_parameters() if p.requires_grad}
    if name.startswith(("moco", "swav")):
        assert not others
        assert any(name.endswith("bn1.bias") for name in decayed)
    else:
        flat = {name for name, p in method.named_parameters() if p.requires_grad and p.ndim < 2}
        assert others == flat and all(name.endswith((".bias", ".weight")) for name in others)
    assert not any(name.startswith(("key.", "teacher.")) or name.endswith("weight_g") for name in decayed | others)


def test_each_gradient_is_shortened_by_itself():
    """utils.clip_gradients of DINO: a coefficient of most / (norm + 1e-6) where that is less than 1."""
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    for parameter, gradient in zip(parameters, ([3.0, 4, 0], [0.3, 0.4, 0], [0.0, 0, 0]), strict=False):
        parameter.grad = torch.tensor(gradient)
    clip_gradients(parameters, 1.0)
    found = [p.grad.tolist() for p in parameters[:3]]
    np.testing.assert_allclose(found, [[0.6, 0.8, 0], [0.3, 0.4, 0], [0, 0, 0]], rtol=1e-5)
    assert parameters[3].grad is None


def test_gradients_are_shortened_in_few_launches(monkeypatch: pytest.MonkeyPatch):
    """torch multiplies lists of tensors at once only if shapes and strides are the same, channels last as well."""
    given = []
    multiply = torch._foreach_mul_
    monkeypatch.setattr(torch, "_foreach_mul_", lambda *lists: given.append(lists) or multiply(*lists))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    network(torch.ones(2, 3, 8, 8)).square().sum().backward()
    clip_gradients(network.parameters(), 1e-3)
    ((gradients, factors),) = given
    assert len(gradients) == 4
    for gradient, factor in zip(gradients, factors, strict=True):
        assert (gradient.shape, gradient.stride()) == (factor.shape, factor.stride())
        assert gradient.norm() < 1.001e-3


def larc_by_hand(lr: float, decay: float, momentum: float, trust: float) -> Callable:
    """One step of apex's LARC over SGD for a tensor: (weights, gradient, velocity) -> (weights, velocity)."""

    def step(weight: np.ndarray, gradient: np.ndarray, velocity: np.ndarray | None):
        sizes = np.linalg.norm(weight), np.linalg.norm(gradient)
        rate = trust * sizes[0] / (sizes[1] + sizes[0] * decay + 1e-8) if all(sizes) else 1.0
        gradient = (gradient + decay * weight) * rate  # apex: undecayed, where the gradient is 0
        velocity = gradient if velocity is None else momentum * velocity + gradient
        return weight - lr * velocity, velocity

    return step


def test_larc_takes_apexs_steps():
    """Of a matrix, a bias that begins at 0, one whose gradient is 0 for a step, one that is frozen at first."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=(4, 3)), np.zeros(4), random.normal(size=5), random.normal(size=(2, 2))]
    parameters = [nn.Parameter(torch.tensor(weight)) for weight in weights]
    config = optimizers.LARC(base_lr=9.0, momentum=0.9, trust=0.01, weight_decay=0.1, decay_all=True)
    optimiser = config.build(nn.ParameterList(parameters))
    velocities: list[np.ndarray | None] = [None] * 4
    for number, lr in enumerate((0.5, 0.4, 0.3)):
        gradients = [random.normal(size=weight.shape) for weight in weights]
        gradients[2] *= number != 1
        set_rates(optimiser, lr, 0.1)
        for n, parameter in enumerate(parameters):
            parameter.grad = None if n == 3 and number == 0 else torch.tensor(gradients[n])
            if parameter.grad is not None:
                step = larc_by_hand(lr, 0.1, 0.9, 0.01)
                weights[n], velocities[n] = step(weights[n], gradients[n], velocities[n])
        optimiser.step()
        for weight, parameter in zip(weights, parameters, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-9, atol=1e-12)
    assert optimiser.param_groups[0]["weight_decay"] == 0.1


def test_momentum_is_not_nesterovs():
    parameter = nn.Parameter(torch.tensor([[1.0]]))
    optimiser = optimizers.SGD(base_lr=1, momentum=0.9, weight_decay=0.5, decay_all=True).build(
        nn.ParameterList([parameter])
    )
    weight, velocity = 1.0, None
    for gradient in (1.0, 2.0, -1.0):
        set_rates(optimiser, 0.1, 0.5)
        parameter.grad = torch.tensor([[gradient]])
        optimiser.step()
        slope = gradient + 0.5 * weight
        velocity = slope if velocity is None else 0.9 * velocity + slope
        weight -= 0.1 * velocity
        assert parameter.item() == pytest.approx(weight)
