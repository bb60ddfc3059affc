"""The numbers that judge a backbone's features, the same during a run and after it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_pretrain.inspection import nearest_neighbours
from ssl_pretrain.inspection.collapse import feature_std, rank_me
from ssl_pretrain.inspection.probe_patches import Sample

# Patches that numbers are made of, on a GPU and on a CPU, where ViT-B takes half a second for each. RankMe cannot
# exceed them.
PATCHES = 512
PATCHES_ON_CPU = 128
# Images that go through the trunk together.
AT_ONCE = 64
# Below it features are taken for collapsed. Untrained ResNets lie there, too (0.02). The limits are ours.
LEAST_STD = 0.1
# The same for RankMe, as a share of what it can be at most: min(patches, dimensions).
LEAST_RANK = 0.01
# Skill by which neighbours may recognise the slide better than the biomarker without a warning. Ours.
MOST_SHORTCUT = 0.5


def default_patches(device: torch.device) -> int:
    """Default number of patches of a measurement."""
    return PATCHES_ON_CPU if device.type == "cpu" else PATCHES


@torch.no_grad()
def features_of(trunk: nn.Module, patch_BCHW: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """Features (B, D) in float32 of uint8 patches, on the CPU; the trunk should be in eval mode."""
    device = next(trunk.parameters()).device
    parts = [trunk(normalise(part_BCHW.to(device))) for part_BCHW in patch_BCHW.split(AT_ONCE)]
    return torch.cat(parts).float().cpu()


def measure(features_ND: Tensor, sample: Sample) -> dict[str, float]:
    """`feature_std`, `rank_me`; where the shards have labels, `knn_slide`, `knn_biomarker` and their chance."""
    measures = {"feature_std": feature_std(features_ND), "rank_me": rank_me(features_ND)}
    for name, accuracy in (
        ("knn_biomarker", nearest_neighbours.of_biomarkers(features_ND, sample.biomarkers, sample.slides)),
        ("knn_slide", nearest_neighbours.of_slides(features_ND, sample.slides)),
    ):
        if accuracy is not None:
            measures |= {name: accuracy.value, f"{name}_chance": accuracy.chance}
    return measures


def alarms(measures: dict[str, float], most_rank: int, may_collapse: bool = True) -> dict[str, str]:
    """Warnings about a measurement, by the name of the number.

    Args:
        measures: As `measure` returns them.
        most_rank: What RankMe can be at most: min(N, D).
        may_collapse: Whether the method is one whose features can collapse.
    """
    found = _collapse(measures, most_rank) if may_collapse else {}
    slide, biomarker = (_skill(measures, name) for name in ("knn_slide", "knn_biomarker"))
    if slide is not None and biomarker is not None and slide - biomarker > MOST_SHORTCUT:
        found["knn_slide"] = (
            f"features tell slides apart rather than biomarkers: a patch's neighbours name its slide in "
            f"{measures['knn_slide']:.0%} (chance {measures['knn_slide_chance']:.0%}), but its biomarker, "
            f"judged by other slides, in {measures['knn_biomarker']:.0%} "
            f"(chance {measures['knn_biomarker_chance']:.0%})"
        )
    return found


def _collapse(measures: dict[str, float], most_rank: int) -> dict[str, str]:
    found = {}
    if measures["feature_std"] < LEAST_STD:
        found["feature_std"] = (
            f"features differ little between patches: deviation {measures['feature_std']:.3f}, where 1 is "
            f"everything and under {LEAST_STD} a sign of collapse"
        )
    if measures["rank_me"] < LEAST_RANK * most_rank:
        found["rank_me"] = (
            f"features fill few dimensions: RankMe {measures['rank_me']:.1f} of at most {most_rank}, where under "
            f"{LEAST_RANK:.0%} is a sign of collapse"
        )
    return found


def missing_labels(measures: dict[str, float]) -> str:
    """Explanation of missing nearest-neighbour scores; empty if there are none missing."""
    missing = []
    if "knn_slide" not in measures:
        missing.append("knn_slide needs patches of two slides")
    if "knn_biomarker" not in measures:
        missing.append("knn_biomarker needs two biomarkers on two slides each")
    return "; ".join(missing) and f"{'; '.join(missing)}, named in the KEY.json of the shards"


def _skill(measures: dict[str, float], name: str) -> float | None:
    if name not in measures:
        return None
    return nearest_neighbours.Accuracy(measures[name], measures[f"{name}_chance"]).skill
