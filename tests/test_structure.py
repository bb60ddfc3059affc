"""The code stays within the limits of its structure."""

import pytest

from tests.structure import LIMITS, measure


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    return measure()


@pytest.mark.parametrize("name", LIMITS)
def test_measure_is_within_its_limit(measured: dict[str, float], name: str):
    assert measured[name] <= LIMITS[name]
