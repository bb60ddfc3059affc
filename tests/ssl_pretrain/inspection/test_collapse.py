"""Numbers that tell a collapse, against numpy, lightly and cases that can be worked out."""

import numpy as np
import pytest
import torch
from lightly.utils.debug import std_of_l2_normalized

from ssl_pretrain.inspection.collapse import feature_std, rank_me


def noise(images: int, dimensions: int) -> torch.Tensor:
    return torch.randn(images, dimensions, generator=torch.Generator().manual_seed(0))


def test_deviation_is_1_where_features_point_everywhere_and_0_where_they_are_one():
    assert feature_std(noise(2000, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(20, 64) * torch.arange(1, 21)[:, None]) == pytest.approx(0, abs=1e-6)
    features_ND = noise(50, 8) + 3
    assert feature_std(features_ND) == pytest.approx(float(std_of_l2_normalized(features_ND)) * 8**0.5, rel=1e-5)


def test_rank_me_equals_numpys_singular_values():
    features_ND = noise(60, 16) * torch.logspace(0, -3, 16)
    share = np.linalg.svd(features_ND.double().numpy(), compute_uv=False)
    share /= share.sum()
    assert rank_me(features_ND) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)


def test_rank_me_counts_dimensions():
    assert rank_me(torch.eye(32).repeat(2, 1)) == pytest.approx(32, rel=1e-3)
    assert rank_me(noise(100, 4) @ noise(4, 64)) == pytest.approx(4, rel=0.05)
    assert rank_me(torch.ones(100, 64)) == pytest.approx(1, rel=1e-3)
    assert np.isfinite(rank_me(torch.zeros(10, 4)))
