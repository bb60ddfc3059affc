"""Nearest-neighbour scores: whether neighbours share a patch's biomarker, or only its slide.

Both labels come with the shards. Neighbours of other slides alone judge the biomarker, as those of the same slide
share its colours, blur and scanner. Accuracy is the mean over labels (balanced), so that chance is 1 / labels.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# eval_knn.py of the official DINO: the best number of neighbours there, and its temperature.
NEIGHBOURS = 20
TEMPERATURE = 0.07


class Accuracy(NamedTuple):
    """Accuracy of nearest neighbours."""

    value: float
    """Mean over labels of the share of their patches whose neighbours are right."""
    chance: float
    """The same for random guesses."""

    @property
    def skill(self) -> float:
        """0: no better than guesses; 1: always right."""
        return (self.value - self.chance) / (1 - self.chance)


def of_slides(features_ND: Tensor, slides: Sequence[str]) -> Accuracy | None:
    """Score of neighbours for the slide; None with fewer than two slides of two patches each.

    Features (N, D) with the slide of each, empty where unknown.
    """
    known = {slide for slide in slides if slide and slides.count(slide) > 1}
    label_N, chosen_N = _numbered(slides, known)
    others_NN = ~torch.eye(len(label_N), dtype=torch.bool)
    return _accuracy(features_ND, label_N, others_NN, chosen_N, len(known))


def of_biomarkers(features_ND: Tensor, biomarkers: Sequence[str], slides: Sequence[str]) -> Accuracy | None:
    """Score of neighbours on other slides for the biomarker; None without two of two slides each.

    Features (N, D) with the biomarker and the slide of each, empty where unknown. A biomarker that is on one
    slide only is left out: nothing distinguishes it from that slide.
    """
    pairs = {pair for pair in zip(biomarkers, slides, strict=True) if all(pair)}
    places = [biomarker for biomarker, _ in pairs]
    known = {biomarker for biomarker in places if places.count(biomarker) > 1}
    told = [biomarker if slide else "" for biomarker, slide in zip(biomarkers, slides, strict=True)]
    label_N, chosen_N = _numbered(told, known)
    slide_N, _ = _numbered(slides, set(slides))
    return _accuracy(features_ND, label_N, slide_N[:, None] != slide_N, chosen_N, len(known))


def vote(similarity_QN: Tensor, allowed_QN: Tensor, label_N: Tensor, labels: int) -> Tensor:
    """Find the label (Q) that the most similar of the allowed N vote for, each with exp(similarity / T)."""
    similarity_QN = similarity_QN.masked_fill(~allowed_QN, -torch.inf)
    nearest_QK, index_QK = similarity_QN.topk(min(NEIGHBOURS, similarity_QN.shape[1]), dim=1)
    votes_QL = torch.zeros(len(similarity_QN), labels)
    votes_QL.scatter_add_(1, label_N[index_QK], (nearest_QK / TEMPERATURE).exp())
    return votes_QL.argmax(dim=1)


def _numbered(names: Sequence[str], known: Collection[str]) -> tuple[Tensor, Tensor]:
    """Return the number of each name (0 if it is not known), and whether it is known."""
    numbers = {name: number for number, name in enumerate(sorted(known))}
    return torch.tensor([numbers.get(name, 0) for name in names]), torch.tensor(
        [name in numbers for name in names]
    )


def _accuracy(
    features_ND: Tensor, label_N: Tensor, allowed_NN: Tensor, chosen_N: Tensor, labels: int
) -> Accuracy | None:
    if labels < 2:
        return None
    unit_ND = F.normalize(features_ND[chosen_N].float().cpu(), dim=1)
    label_N, allowed_NN = label_N[chosen_N], allowed_NN[chosen_N][:, chosen_N]
    right_N = (vote(unit_ND @ unit_ND.T, allowed_NN, label_N, labels) == label_N).float()
    per_label = [float(right_N[label_N == label].mean()) for label in range(labels)]
    return Accuracy(sum(per_label) / labels, 1 / labels)
