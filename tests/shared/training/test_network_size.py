"""Operations of a network, counted without computing."""

import pytest
import torch
from torch import nn

from shared.training.network_size import counted_operations


@pytest.mark.parametrize("trained", [False, True])
def test_products_of_layers_and_attention(trained: bool):
    """Keys, queries, values and projection; two products of attention; twice as much again backwards."""
    batch, tokens, width = 3, 10, 64
    with counted_operations() as operations:
        attention = nn.MultiheadAttention(width, 4, batch_first=True)
        found, _ = attention(*[torch.zeros(batch, tokens, width, requires_grad=trained)] * 3, need_weights=False)
        if trained:
            found.sum().backward()
    forward = 2 * batch * (4 * tokens * width**2 + 2 * tokens**2 * width)
    assert operations.get_total_flops() == (3 if trained else 1) * forward


def test_nothing_is_computed():
    """A product for which there is no memory."""
    with counted_operations() as operations:
        torch.zeros(10**6, 10**6) @ torch.zeros(10**6, 1)
    assert operations.get_total_flops() == 2 * 10**12
