"""Collapse indicators: feature standard deviation and RankMe."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Added to the share of a singular value (RankMe, eq. 2, for float32).
EPSILON = 1e-7


def feature_std(features_ND: Tensor) -> float:
    """Compute the standard deviation of features' unit vectors over images, mean over dimensions, times sqrt(D).

    1: they point everywhere; 0: all in one direction. Chen & He (SimSiam, CVPR 2021, section 4.1) watch it.
    """
    unit_ND = F.normalize(features_ND.float(), dim=1)
    return float(unit_ND.std(dim=0).mean()) * math.sqrt(features_ND.shape[1])


def rank_me(features_ND: Tensor) -> float:
    """RankMe: exponential of the entropy of the features' singular values (Garrido et al., ICML 2023, eq. 2).

    From 1, where they lie on a line, to min(N, D), where they fill all dimensions alike.
    """
    # Roots of the eigenvalues of the smaller product are the singular values, found in a tenth of the time; in
    # float64 they are good to 1e-8 of the greatest.
    wide_ND = features_ND.double() if features_ND.shape[0] <= features_ND.shape[1] else features_ND.double().T
    singular_M = torch.linalg.eigvalsh(wide_ND @ wide_ND.T).clamp_min(0).sqrt()
    share_M = singular_M / singular_M.sum().clamp_min(EPSILON) + EPSILON
    return float(torch.exp(-(share_M * share_M.log()).sum()))
