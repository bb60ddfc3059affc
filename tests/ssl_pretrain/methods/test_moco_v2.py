"""MoCo v2 against the papers' formulae, computed here in another way."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from ssl_pretrain.methods import Step, moco_v2
from tests.ssl_pretrain import tiny

FIRST = Step(0, 0, 160)
TEMPERATURE = 0.2


def build(**fields: object) -> moco_v2.MoCo:
    torch.manual_seed(0)
    return tiny.method("moco_v2_resnet50", **{"key_group": 100, **fields}).build()


def pair(count: int = 4, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, 32, 32, generator=generator) for _ in range(2)]


@torch.no_grad()
def unit_vectors(encoder: nn.Module, view_BCHW: Tensor) -> np.ndarray:
    """Return what a network in training mode makes of a batch, without a trace in it."""
    rows = copy.deepcopy(encoder)([view_BCHW]).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def loss_by_hand(query: np.ndarray, key: np.ndarray, others: np.ndarray) -> float:
    """Equation 1 of the first paper, image by image."""
    terms = []
    for q, k in zip(query, key, strict=True):
        own = math.exp(q @ k / TEMPERATURE)
        terms.append(-math.log(own / (own + sum(math.exp(q @ other / TEMPERATURE) for other in others))))
    return float(np.mean(terms))


def test_loss_equals_the_papers_formula():
    """Against the queue as it was before the batch's own keys joined it."""
    model = build()
    for seed in (1, 2):
        views, before = pair(seed=seed), model.queue.rows_ND.double().numpy().copy()
        query, key = unit_vectors(model.query, views[0]), unit_vectors(model.key, views[1])
        assert model.loss(views, FIRST).item() == pytest.approx(loss_by_hand(query, key, before), rel=1e-5)


def test_queue_takes_keys_in_their_order_and_drops_the_oldest():
    model = build(queue_length=10)
    rows = model.queue.rows_ND.clone()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(10))
    for seed, places in ((1, [0, 1, 2, 3]), (2, [4, 5, 6, 7]), (3, [8, 9, 0, 1])):
        views = pair(seed=seed)
        rows[places] = torch.from_numpy(unit_vectors(model.key, views[1])).float()
        model.loss(views, FIRST)
        torch.testing.assert_close(model.queue.rows_ND, rows, rtol=0, atol=1e-4)
    assert model.queue.place == 2
    saved = model.state_dict()
    assert torch.equal(saved["queue.rows_ND"], model.queue.rows_ND) and saved["queue.place"] == 2


def test_of_more_keys_than_the_queue_is_long_the_last_remain():
    model = build(queue_length=3)
    views = pair(5)
    expected = unit_vectors(model.key, views[1])[-3:]
    model.loss(views, FIRST)
    np.testing.assert_allclose(model.queue.rows_ND.numpy(), expected, atol=1e-4)


def test_both_networks_begin_equal_and_keys_follow_by_a_moving_average_of_the_parameters():
    model = build(momentum=0.9)
    key, query = dict(model.key.named_parameters()), dict(model.query.named_parameters())
    assert all(torch.equal(key[name], query[name]) for name in key | query)
    expected = {name: value.detach().clone() for name, value in key.items()}
    statistics = {name: value.clone() for name, value in model.key.named_buffers()}
    for number in range(3):
        with torch.no_grad():
            for value in query.values():
                value.add_(torch.randn_like(value))
        expected = {name: 0.9 * value + 0.1 * query[name].detach() for name, value in expected.items()}
        model.after_step(Step(number, 8 * number, 160))
        for name, value in expected.items():
            torch.testing.assert_close(key[name].detach(), value, rtol=0, atol=1e-6)
    assert all(torch.equal(value, statistics[name]) for name, value in model.key.named_buffers())


def test_keys_are_made_in_small_groups_of_drawn_images_and_come_back_in_order():
    model, (_, view_BCHW) = build(key_group=3), pair(8)
    groups = []
    model.key.trunk.conv1.register_forward_pre_hook(lambda _module, given: groups.append(given[0]))
    model.loss([view_BCHW, view_BCHW], FIRST)
    assert sorted(len(group) for group in groups) == [2, 3, 3]
    seen = torch.cat(groups)
    order = [next(n for n in range(8) if torch.equal(image, view_BCHW[n])) for image in seen]
    assert sorted(order) == list(range(8)) and order != sorted(order)
    for norm in model.modules():  # which then do not depend on the others of a batch
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()
    expected = unit_vectors(model.key, view_BCHW)
    model.queue.place.zero_()
    model.loss([view_BCHW, view_BCHW], FIRST)
    np.testing.assert_allclose(model.queue.rows_ND[:8].numpy(), expected, atol=1e-4)


def test_only_the_query_network_is_trained():
    model = build()
    model.loss(pair(), FIRST).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert (
        with_gradient == trainable == {name for name, _ in model.named_parameters() if name.startswith("query.")}
    )


def test_loss_is_float32_under_autocast():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(pair(), FIRST)
    assert loss.dtype == model.queue.rows_ND.dtype == torch.float32
    torch.testing.assert_close(model.queue.rows_ND[:4].norm(dim=1), torch.ones(4))  # 1.00 in bfloat16 is not


def test_network_it_cannot_train():
    with pytest.raises(UserError, match=r"MoCo v2 cannot train vit_base_patch16_224; choose .* from resnet50"):
        build(arch="vit_base_patch16_224")
