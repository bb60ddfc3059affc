"""What methods tell of their last pass, computed again from the definitions."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_pretrain.methods import Step
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.tiny import FIRST


def views(method: object, images: int = 6) -> list[torch.Tensor]:
    sizes = [crop.size for crop in method.config.crops for _ in range(crop.count)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, 3, size, size, generator=generator) for size in sizes]


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def test_dinos_entropy_and_divergence():
    torch.manual_seed(0)
    method = tiny.method("dino_vitb", drop_path=0.0).build()
    with torch.no_grad():
        method.criterion.center.copy_(torch.randn(20) * 0.01)
        for parameter in method.student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        seen, step = views(method), Step(1, 8, 160)
        student_VBK = method.student(seen).unflatten(0, (4, -1))
        centred = method.teacher(seen[:2]).unflatten(0, (2, -1)) - method.criterion.center
    temperature = method.config.temperature(8)
    entropies, divergences = [], []
    for teacher in range(2):
        for image in range(6):
            p = softmax((centred[teacher, image] / temperature).tolist())
            entropies.append(-sum(x * math.log(x) for x in p if x))
            for student in set(range(4)) - {teacher}:
                q = softmax((student_VBK[student, image] / 0.1).tolist())
                divergences.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x))
    method.loss(seen, step)
    found = {name: value.item() for name, value in method.measures().items()}
    assert found["teacher_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-3)
    assert found["divergence"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)


def test_mocos_accuracy(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    method = tiny.method("moco_v2_resnet50").build()
    query_BD = F.normalize(torch.randn(40, 8), dim=1)
    key_BD = F.normalize(query_BD + 0.3 * torch.randn(40, 8), dim=1)
    monkeypatch.setattr(method.query, "forward", lambda _views: query_BD)
    monkeypatch.setattr(method, "_keys", lambda _view: key_BD)
    right = [
        all(float(query @ key) > float(query @ other) for other in method.queue.rows_ND)
        for query, key in zip(query_BD, key_BD, strict=True)
    ]
    method.loss(views(method), FIRST)
    assert 5 < sum(right) < 40
    assert method.measures()["queue_accuracy"].item() == pytest.approx(sum(right) / 40)

    # Everything the same: equally alike is not right.
    query_BD = key_BD = torch.eye(8)[:1].expand(6, -1)
    method.queue.rows_ND.copy_(torch.eye(8)[:1].expand(20, -1))
    method.loss(views(method), FIRST)
    assert method.measures()["queue_accuracy"].item() == 0


def test_swavs_prototypes_used(monkeypatch: pytest.MonkeyPatch):
    method = tiny.method("swav_resnet50").build()
    chosen_AB = torch.tensor([[0, 0, 3], [3, 3, 7]])
    monkeypatch.setattr(method, "_assignments", lambda *_: F.one_hot(chosen_AB, 10).float())
    method.loss(views(method, 3), FIRST)
    assert method.measures()["prototypes_used"].item() == pytest.approx(3 / 10)
