"""DINO against the paper's formulae, computed here in another way."""

import math
import warnings

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from shared.errors import UserError
from ssl_pretrain.methods import Step, dino
from tests.ssl_pretrain import tiny

FIRST = Step(0, 0, 160)


def build(name: str = "dino_resnet50", **fields: object) -> dino.DINO:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny.method(name, **{"drop_path": 0.0, **fields}).build()
    with torch.no_grad():  # so that a teacher that has fallen behind is another
        for parameter in model.student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def crops(count: int = 4, seed: int = 1) -> list[Tensor]:
    """Two global and two local ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, size, size, generator=generator) for size in (64, 64, 32, 32)]


@torch.no_grad()
def outputs(encoder: nn.Module, views: list[Tensor]) -> np.ndarray:
    """Of a network in training mode (V, B, K), one pass for each size."""
    trunk, head = encoder.trunk, encoder.head
    sizes = sorted({view.shape[-1] for view in views}, reverse=True)
    features = [trunk(torch.cat([view for view in views if view.shape[-1] == size])) for size in sizes]
    rows = head.layers(torch.cat(features)).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    directions = head.last_layer.weight_v.double().numpy()
    lengths = head.last_layer.weight_g.double().numpy()
    prototypes = lengths * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return (rows @ prototypes.T).reshape(len(views), -1, len(prototypes))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def loss_by_hand(student: np.ndarray, teacher: np.ndarray, centre: np.ndarray, temperature: float) -> float:
    """Equation 3 of the paper, image by image: H(P_t(x), P_s(x')) over all x' other than x."""
    terms = []
    for t, s in ((t, s) for t in range(2) for s in range(len(student)) if s != t):
        for image in range(student.shape[1]):
            wanted = softmax((teacher[t, image] - centre) / temperature)
            terms.append(-(wanted * np.log(softmax(student[s, image] / 0.1))).sum())
    return float(np.mean(terms))


@pytest.mark.parametrize("name", ["dino_resnet50", "dino_vitb"])
def test_loss_equals_the_papers_formula_and_the_centre_follows(name: str):
    """Two batches: the first with a centre of 0, the second with 0.9 of that and 0.1 of the first's mean."""
    model = build(name, teacher_temperature=0.06, temperature_samples=0)
    centre = np.zeros(20)
    for seed in (1, 2):
        views = crops(seed=seed)
        student, teacher = outputs(model.student, views), outputs(model.teacher, views[:2])
        expected = loss_by_hand(student, teacher, centre, 0.06)
        assert model.loss(views, FIRST).item() == pytest.approx(expected, rel=1e-4)
        centre = 0.9 * centre + 0.1 * teacher.mean(axis=(0, 1))
        np.testing.assert_allclose(model.state_dict()["criterion.center"].flatten().numpy(), centre, atol=1e-5)


def test_teachers_temperature_rises_linearly():
    config = tiny.method(
        "dino_vitb", first_teacher_temperature=0.04, teacher_temperature=0.07, temperature_samples=300
    )
    found = [config.temperature(samples) for samples in (0, 100, 150, 299, 300, 10_000)]
    assert found == pytest.approx([0.04, 0.05, 0.055, 0.04 + 0.03 * 299 / 300, 0.07, 0.07])
    model = build(first_teacher_temperature=0.2, teacher_temperature=0.05, temperature_samples=40)
    losses = [copied_loss(model, Step(0, samples, 160)) for samples in (0, 39, 40, 100)]
    assert len({round(loss, 5) for loss in losses}) == 3 and losses[2] == losses[3]


def copied_loss(model: dino.DINO, step: Step) -> float:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model.loss(crops(), step).item()
    model.load_state_dict(before)
    return loss


def test_teacher_begins_as_the_student_and_follows_on_a_cosine():
    """0.99 in the first update, 1 - (1 - 0.99) (cos(pi share) + 1) / 2 later; parameters alone."""
    torch.manual_seed(0)
    model = tiny.method("dino_resnet50", momentum=0.99).build()
    teacher, student = dict(model.teacher.named_parameters()), dict(model.student.named_parameters())
    assert all(torch.equal(teacher[name], student[name]) for name in teacher | student)
    expected = {name: value.detach().clone() for name, value in teacher.items()}
    statistics = {name: value.clone() for name, value in model.teacher.named_buffers()}
    for number in range(20):
        with torch.no_grad():
            for value in student.values():
                value.add_(torch.randn_like(value))
        momentum = 1 - 0.01 * (math.cos(math.pi * number / 20) + 1) / 2
        model.after_step(Step(number, 8 * number, 160))
        for name in expected:
            expected[name] = momentum * expected[name] + (1 - momentum) * student[name].detach()
            torch.testing.assert_close(teacher[name].detach(), expected[name], rtol=0, atol=1e-5)
    assert all(torch.equal(value, statistics[name]) for name, value in model.teacher.named_buffers())


def test_teacher_sees_the_global_views_alone_in_training_mode():
    model = build()
    sizes: dict[str, list] = {"teacher": [], "student": []}
    for name, seen in sizes.items():
        trunk = getattr(model, name).trunk
        trunk.register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append((given[0].shape, module.training))
        )
    model.loss(crops(), FIRST)
    assert sizes["teacher"] == [((8, 3, 64, 64), True)]
    assert sizes["student"] == [((8, 3, 64, 64), True), ((8, 3, 32, 32), True)]  # one pass a size


def test_last_layer_is_held_for_the_first_images():
    model = build(frozen_samples=12)
    optimiser = torch.optim.SGD(model.student.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for number, samples in enumerate((0, 8, 16)):
        step = Step(number, samples, 160)
        before = {name: value.clone() for name, value in model.student.state_dict().items()}
        model.loss(crops(), step).backward()
        model.before_update(step)
        optimiser.step()
        optimiser.zero_grad()
        changed = {
            name for name, value in model.student.named_parameters() if not torch.equal(value, before[name])
        }
        assert ("head.last_layer.weight_v" in changed) == (samples >= 12)
        assert "head.layers.0.weight" in changed and "head.last_layer.weight_g" not in changed


def test_vectors_of_the_last_layer_keep_unit_length_unless_told():
    model, free = build(), build(norm_last_layer=False)
    assert (
        not model.student.head.last_layer.weight_g.requires_grad
        and model.student.head.last_layer.weight_g.eq(1).all()
    )
    assert free.student.head.last_layer.weight_g.requires_grad


def test_only_the_student_leaves_out_branches():
    torch.manual_seed(0)
    model = tiny.method("dino_vitb", drop_path=0.1).build()
    rates = {
        name: [module.drop_prob for module in getattr(model, name).modules() if isinstance(module, DropPath)]
        for name in ("student", "teacher")
    }
    assert max(rates["student"]) == pytest.approx(0.1) and rates["teacher"] == []


def test_every_trainable_parameter_gets_a_gradient():
    """DDP waits for those that do not."""
    for name in ("dino_resnet50", "dino_vitb"):
        model = build(name)
        model.loss(crops(), FIRST).backward()
        idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == []
        assert not any(p.requires_grad for p in model.teacher.parameters())


def test_loss_is_float32_under_autocast():
    model = build("dino_vitb")
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(crops(), FIRST)
    assert loss.dtype == model.criterion.center.dtype == torch.float32


def test_cosines_are_not_rounded_to_bfloat16():
    """From the bottleneck on, autocast changes nothing."""
    head = build("dino_vitb").student.head
    feature_BD = torch.randn(8, head.layers[0].in_features)
    with torch.autocast("cpu", torch.bfloat16):
        bottleneck_BD = head.layers(feature_BD)
        cosine_BK = head(feature_BD)
    expected_BK = head.last_layer(torch.nn.functional.normalize(bottleneck_BD.float(), dim=1))
    torch.testing.assert_close(cosine_BK, expected_BK, atol=1e-6, rtol=0)


def test_class_token_is_drawn_like_all_else():
    model = tiny.method("dino_vitb").build()
    assert 0.01 < model.teacher.trunk.cls_token.std() < 0.03


def test_networks_it_cannot_train():
    with pytest.raises(UserError, match=r"DINO cannot train vit_huge; choose .* from resnet50.*vit_base"):
        build(arch="vit_huge")
    with pytest.raises(UserError, match=r"crops of 40 px do not divide .*--method.local-size"):
        build("dino_vitb", local_size=40)
