"""The rivals' losses: least for what they ask for, the same in parts, defined without cells."""

import itertools
import math

import numpy as np
import pytest
import torch

from finetune.recipes import RECIPES
from finetune.training.objective import Objective, Targets
from finetune.training.rivals import transport_loss
from finetune.training.rivals.map_losses import PeaksObjective, dice
from finetune.training.rivals.query_loss import matched
from finetune.training.rivals.transport_loss import transport_terms
from shared.model.rivals.outputs import Maps, Queries, SquareMaps
from shared.model.rivals.rival_detector import RivalConfig
from shared.model.rivals.transport import falling_blurs

RIVALS = ("unet", "ucsrnet", "mcspatnet", "gl", "fidt", "cltr")
SIDE = 48


def objective(name: str) -> Objective:
    network = RECIPES[name].network
    config = RivalConfig(classes=2, network=network.rival, decoder=network.decoder, mpp=0.5)
    return RECIPES[name].criterion.objective(config, 1)


def output(name: str, images: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).requires_grad_()

    if name == "mcspatnet":
        return SquareMaps(*(values(images, channels, SIDE, SIDE) for channels in (1, 2, 10, 14, 128)))
    if name == "cltr":
        points = (values(6, images, 30, 2).sigmoid() * SIDE).detach().requires_grad_()
        return Queries(points, values(6, images, 30, 2), torch.full((6, images, 2), float(SIDE)))
    cells = SIDE // {"unet": 1, "fidt": 1, "ucsrnet": 4, "gl": 8}[name]
    return Maps(values(images, 2, cells, cells).abs().detach().requires_grad_())


def targets(*counts: int) -> list[Targets]:
    random = torch.Generator().manual_seed(1)
    return [Targets(torch.rand(n, 2, generator=random) * SIDE, torch.arange(n) % 2) for n in counts]


@pytest.mark.parametrize("name", RIVALS)
def test_a_batch_in_parts_has_the_same_loss(name: str) -> None:
    found, truth, loss = output(name, 4), targets(7, 0, 3, 1), objective(name)
    sums = loss.normalisers(found, truth)
    whole = loss.loss(found, truth, sums)
    axis = 1 if name == "cltr" else 0
    halves = [type(found)(*(each.split(2, axis)[part] for each in found)) for part in (0, 1)]
    parts = [loss.loss(half, truth[2 * n : 2 * n + 2], sums) for n, half in enumerate(halves)]
    for one, *two in zip(whole, *parts, strict=True):
        torch.testing.assert_close(two[0] + two[1], one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.total, whole.classification + whole.regression)


@pytest.mark.parametrize("name", RIVALS)
def test_without_any_cell_the_loss_is_defined(name: str) -> None:
    found, truth, loss = output(name, 2), targets(0, 0), objective(name)
    loss.begin_step()
    total = loss.loss(found, truth, loss.normalisers(found, truth)).total
    total.backward()
    assert math.isfinite(total.detach()) and any(
        each.grad is not None and each.grad.abs().sum() > 0 for each in found
    )


def test_dice_by_hand() -> None:
    found, wanted = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([1, 1, 0])
    assert float(dice(found, wanted)) == pytest.approx(1 - (2 * 1.5 + 1) / (1.25 + 2 + 1))


def test_discs_are_learnt_as_classes() -> None:
    """Cells just outside of the crop colour it, too; px of no disc are background, whose logit is 0."""
    (truth,) = targets(6)
    truth = Targets(torch.cat([truth.cells_M2, torch.tensor([[-1.0, 20.0]])]), torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    away = torch.cdist(torch.stack([x, y], -1).view(-1, 2), truth.cells_M2)
    label = torch.where(away.min(1).values <= 2.8, truth.labels_M[away.argmin(1)], 2).view(SIDE, SIDE)
    perfect = Maps(torch.stack([torch.where(label == each, 20.0, -20.0) for each in (0, 1)])[None])
    loss = objective("unet")
    assert float(loss.loss(perfect, [truth], torch.ones(1)).total) < 1e-6
    worse = Maps(perfect.maps_BCHW.roll(1, 3))
    assert float(loss.loss(worse, [truth], torch.ones(1)).total) > 0.5


def test_peaks_are_regressed() -> None:
    (truth,) = targets(5)
    loss = PeaksObjective(4, 3.0, "gaussian")
    heights = torch.from_numpy(loss.heights(truth, 2, 12, 12)).float()
    assert float(loss.loss(Maps(heights[None]), [truth], torch.ones(1)).total) < 1e-8
    missed = loss.loss(Maps(heights[None] * 0), [truth], torch.ones(1)).total
    assert float(missed) == pytest.approx(float(heights.square().sum()))


def test_neighbours_and_subclasses_of_mcspatnet() -> None:
    """The K head's square is regressed on squares only; sub-classes count from the second epoch on."""
    (truth,), loss = targets(4), objective("mcspatnet")
    found = output("mcspatnet", 1)
    loss.begin_step()
    first = loss.loss(found, [truth], torch.ones(1))
    first.total.backward()
    assert found[2].grad is None or found[2].grad.abs().sum() == 0
    on_squares = found[3].grad.abs().sum((0, 1)) > 0
    assert 0 < on_squares.float().mean() < 0.5
    for _ in range(2):  # an epoch has one step here: the second begins with clusters of the class that has enough
        loss.loss(found, targets(14), torch.ones(1))
        loss.begin_step()
    second = loss.loss(found, [truth], torch.ones(1))
    assert float(second.classification) > float(first.classification) + 0.1


GRID, CELLS = 64, 60


def _density(points_N2: torch.Tensor, moved: tuple[int, int] = (0, 0)) -> torch.Tensor:
    density_HW = torch.zeros(GRID, GRID)
    columns, rows = (points_N2 // 8).long().T
    density_HW[rows + moved[1], columns + moved[0]] = 1
    return density_HW


def test_transport_rises_with_what_is_wrong() -> None:
    random = np.random.default_rng(0)
    places = random.choice(60 * 60, CELLS, replace=False)
    cells_M2 = torch.from_numpy(np.stack(np.divmod(places, 60), 1) * 8 + 20.0).float()
    perfect = _density(cells_M2)
    blurred = torch.nn.functional.avg_pool2d(perfect[None, None], 3, 1, 1)[0, 0]
    cases = [perfect, blurred, perfect / 2, _density(cells_M2, (1, 1)), _density(cells_M2, (2, 2))]
    terms = [[float(each) for each in transport_terms(density, cells_M2, 8)] for density in cases]
    transport, mass = ([each[term] for each in terms] for term in (0, 1))
    assert transport[0] == pytest.approx(0, abs=0.05) and mass[0] == pytest.approx(0, abs=0.01)
    assert transport[0] + 1 < transport[1] < min(transport[2:]) and transport[3] < transport[4]
    assert mass[2] == max(mass) and mass[1] < mass[3] < mass[4]
    (value, left, entropy) = transport_terms(perfect, cells_M2[:0], 8)
    assert float(value + left + entropy) == pytest.approx(1.2 * CELLS)


def test_the_gradient_of_transport_is_that_of_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the iterations have settled, which are few in training."""
    monkeypatch.setattr(transport_loss, "falling_blurs", lambda *given: [*falling_blurs(*given), *[0.01] * 2000])
    torch.manual_seed(0)
    density_HW = (torch.rand(4, 4, dtype=torch.float64) * 0.3 + 0.1).requires_grad_()
    cells_M2 = torch.tensor([[6.0, 9.0], [20.0, 25.0], [28.0, 4.0]])
    transport_terms(density_HW, cells_M2, 8)[0].backward()
    for row, column in itertools.product((0, 2), (1, 3)):
        values = []
        for step in (-1e-3, 1e-3):
            moved = density_HW.detach().clone()
            moved[row, column] += step
            values.append(float(transport_terms(moved, cells_M2, 8)[0]))
        expected = (values[1] - values[0]) / 2e-3
        assert float(density_HW.grad[row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-3)  # type: ignore[index]


def test_matching_of_queries_is_the_cheapest() -> None:
    torch.manual_seed(0)
    points_Q2, logits_QC = torch.rand(6, 2), torch.randn(6, 3)
    target = Targets(torch.rand(4, 2), torch.tensor([0, 2, 1, 2]))
    p = logits_QC.sigmoid()[:, target.labels_M]
    focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    away = (points_Q2[:, None] - target.cells_M2[None]).abs().sum(-1)
    cost_QM = 2 * focal + 5 * away
    best = min(itertools.permutations(range(6), 4), key=lambda chosen: float(sum(cost_QM[chosen, range(4)])))
    queries, cells = matched(points_Q2, logits_QC, target)
    assert dict(zip(cells.tolist(), queries.tolist(), strict=True)) == dict(enumerate(best))
