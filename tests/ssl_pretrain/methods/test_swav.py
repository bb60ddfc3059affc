"""SwAV against the paper's formulae, computed here in another way."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from ssl_pretrain.methods import Step, swav
from tests.ssl_pretrain import tiny

FIRST = Step(0, 0, 160)
TEMPERATURE, EPSILON = 0.1, 0.05


def build(name: str = "swav_resnet50", **fields: object) -> swav.SwAV:
    torch.manual_seed(0)
    return tiny.method(name, **fields).build()


def crops(count: int = 4, seed: int = 1) -> list[Tensor]:
    """Two large and two small ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, size, size, generator=generator) for size in (64, 64, 32, 32)]


@torch.no_grad()
def represented(model: swav.SwAV, views: list[Tensor]) -> np.ndarray:
    """Compute unit vectors (V, B, D) in training mode, one pass for each size, without a trace in the network."""
    network = copy.deepcopy(model.network)
    features = [network.trunk(torch.cat([v for v in views if v.shape[-1] == size])) for size in (64, 32)]
    rows = network.head(torch.cat(features)).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.reshape(len(views), -1, rows.shape[-1])


def assignments(score_NK: np.ndarray) -> np.ndarray:
    """Equation 3 of the paper: diag(u) exp(scores / epsilon) diag(v), u and v by three rounds of scaling."""
    kernel_KN = np.exp(score_NK.T / EPSILON)
    prototypes, images = kernel_KN.shape
    v = np.ones(images)
    for _ in range(3):
        u = 1 / prototypes / (kernel_KN @ v)
        v = 1 / images / (kernel_KN.T @ u)
    return (u[:, None] * kernel_KN * v).T * images


def loss_by_hand(model: swav.SwAV, z_VBD: np.ndarray, queued: list[np.ndarray] | None = None) -> float:
    """Equation 2, image by image; each large view's assignments are predicted from all other views."""
    prototypes_KD = model.prototypes.weight.detach().double().numpy()
    terms = []
    for large in range(2):
        rows = z_VBD[large] if queued is None else np.concatenate([queued[large], z_VBD[large]])
        q_BK = assignments(rows @ prototypes_KD.T)[-z_VBD.shape[1] :]
        for other in set(range(len(z_VBD))) - {large}:
            for z, q in zip(z_VBD[other], q_BK, strict=True):
                p = np.exp(z @ prototypes_KD.T / TEMPERATURE)
                terms.append(-(q * np.log(p / p.sum())).sum())
    return float(np.mean(terms))


def test_loss_equals_the_papers_formula():
    model, views = build(), crops()
    expected = loss_by_hand(model, represented(model, views))
    assert model.loss(views, FIRST).item() == pytest.approx(expected, rel=1e-4)


class Given(nn.Module):
    """In place of the network: what it makes of the views is the views."""

    def forward(self, views: list[Tensor]) -> Tensor:
        return torch.cat(views)


@pytest.mark.parametrize("contrast", ["opposite", "any"])
def test_assignments_are_made_in_float32_under_autocast(contrast: str):
    """Opposite: cosines of -1 and 1, whose exponentials differ by exp(40)."""
    model = build(prototypes=8)
    model.network = Given()
    views = [torch.eye(8), -torch.eye(8)] if contrast == "opposite" else list(torch.randn(4, 5, 8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.prototypes.weight.copy_(torch.eye(8))
        loss = model.loss(views, FIRST)
    assert loss.dtype == torch.float32
    z_VBD = torch.stack(views).double().numpy()
    z_VBD /= np.linalg.norm(z_VBD, axis=2, keepdims=True)
    assert loss.item() == pytest.approx(loss_by_hand(model, z_VBD), rel=1e-5)


def test_queue_begins_when_told_and_joins_when_full():
    """Batches of 4; from 6 images on, so first after 8; 12 rows are full after three batches."""
    model = build("swav_resnet50_256", queue_length=12, queue_after=6)
    queued: list[list[np.ndarray]] = [[], []]
    for number in range(8):
        step, views = Step(number, 4 * number, 160), crops(seed=number)
        z_VBD = represented(model, views)
        rows = [np.concatenate(old) for old in queued] if len(queued[0]) == 3 else None
        assert (rows is not None) == (number >= 5)
        expected = loss_by_hand(model, z_VBD, rows)
        assert model.loss(views, step).item() == pytest.approx(expected, rel=1e-4), number
        if step.samples >= 6:
            queued = [[*old, z_VBD[large]][-3:] for large, old in enumerate(queued)]
    for large in range(2):
        found = model.state_dict()[f"queues.{large}.rows_ND"]
        expected = np.concatenate(
            [queued[large][n] for n in (1, 2, 0)]
        )  # six batches: the ring is back at its start
        assert found.shape == (12, 8) and {tuple(r) for r in found.numpy().round(3)} == {
            tuple(r) for r in expected.astype(np.float32).round(3)
        }


def test_prototypes_are_held_for_the_first_images_and_keep_unit_length():
    model = build(frozen_samples=12)
    assert model.prototypes.bias is None
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for number, samples in enumerate((0, 8, 16)):
        step, before = Step(number, samples, 160), model.prototypes.weight.clone()
        model.loss(crops(), step).backward()
        assert model.prototypes.weight.grad is not None  # DDP waits for it
        model.before_update(step)
        optimiser.step()
        optimiser.zero_grad()
        moved = (model.prototypes.weight - before).abs().max() > 1e-4
        assert moved == (samples >= 12)
        model.after_step(step)
        torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(10))


def test_large_and_small_crops_go_through_the_network_once_each():
    model, sizes = build(), []
    model.network.trunk.register_forward_pre_hook(lambda _module, given: sizes.append(tuple(given[0].shape)))
    model.loss(crops(), FIRST)
    assert sizes == [(8, 3, 64, 64), (8, 3, 32, 32)]


def test_every_parameter_gets_a_gradient_and_assignments_give_none():
    model = build("swav_resnet50_256", queue_after=0)
    loss = model.loss(crops(), FIRST)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(queue.rows_ND.requires_grad for queue in model.queues)


def test_network_it_cannot_train():
    with pytest.raises(UserError, match=r"SwAV cannot train vit_base_patch16_224; choose .* from resnet50"):
        build(arch="vit_base_patch16_224")
