"""Training with two fields of view: a class that only the wider one shows is learnt with it, and not without."""

import pytest
import torch

from finetune.training.criterion import CriterionConfig, Targets, detection_loss, loss_normalisers
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet

SIDE = 64


def sample(count: int, random: torch.Generator) -> tuple[torch.Tensor, list[Targets]]:
    """Black dots on grey (B, 2, 3, H, W), widest view first; light or dark surroundings are the dots' class."""
    images = torch.full((count, 2, 3, SIDE, SIDE), 0.5)
    centre = slice(SIDE // 4, 3 * SIDE // 4)  # what the annotated image covers of the wider view
    y_HW, x_HW = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    targets = []
    for image in images:
        label = int(torch.randint(0, 2, (1,), generator=random))
        image[0] = 0.9 if label else 0.1
        image[0, :, centre, centre] = 0.5
        cells_M2 = torch.rand(4, 2, generator=random) * (SIDE - 16) + 8
        for x, y in cells_M2:
            image[1, :, (x_HW - x) ** 2 + (y_HW - y) ** 2 < 16] = 0.0
        targets.append(Targets(cells_M2, torch.full((4,), label)))
    return images, targets


def accuracy_after_training(views: int, steps: int = 60) -> float:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    arch = "vit_tiny_patch16_224"
    detector = DPAP2PNet(DetectorConfig(arch=arch, classes=2, views=views, channels=64, hidden=64))
    optimiser = torch.optim.AdamW(detector.parameters(), 3e-4)
    for _ in range(steps):
        images, targets = sample(8, random)
        found = detector(images if views == 2 else images[:, 1])
        sums_2 = loss_normalisers(CriterionConfig(), targets, found.points_BN2.shape[1])
        optimiser.zero_grad()
        detection_loss(CriterionConfig(), found, targets, sums_2).total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
    return class_accuracy(detector.eval(), views, random)


@torch.inference_mode()
def class_accuracy(detector: DPAP2PNet, views: int, random: torch.Generator) -> float:
    """Share of cells whose nearest point, asked which of the classes, says the right one."""
    images, targets = sample(32, random)
    found = detector(images if views == 2 else images[:, 1])
    right = []
    for points_N2, logits_NC, target in zip(found.points_BN2, found.logits_BNC, targets, strict=True):
        nearest_M = torch.cdist(target.cells_M2, points_N2).argmin(1)
        right.append(logits_NC[nearest_M, :2].argmax(-1) == target.labels_M)
    return torch.cat(right).float().mean().item()


@pytest.mark.slow
def test_a_class_that_only_the_wider_view_shows() -> None:
    assert accuracy_after_training(views=2) > 0.95
    assert accuracy_after_training(views=1) < 0.75
