import pytest
import torch

from shared.training.precision import autocast


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", torch.float32),
        ("cpu", "float32", torch.float32),
        ("cpu", "bfloat16", torch.bfloat16),
        pytest.param("cuda", "auto", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", "float32", torch.float32, marks=pytest.mark.gpu),
    ],
)
def test_products_are_in_the_precision_asked_for(device, precision, expected):
    matrix = torch.ones(4, 4, device=device)
    with autocast(torch.device(device), precision):
        assert (matrix @ matrix).dtype == expected
    assert (matrix @ matrix).dtype == torch.float32
