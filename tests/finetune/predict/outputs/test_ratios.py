"""Ratios against Python's own arithmetic."""

import pytest

from finetune.predict.outputs.cell_counts import columns_of
from finetune.predict.outputs.ratios import parse_ratio, parse_ratios
from shared.errors import UserError

CLASSES = ("positive", "negative", "PD-L1+ tumour", "2+")
COUNTS = dict(zip(CLASSES, (30, 90, 7, 5), strict=True))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("positive / (positive + negative)", 30 / (30 + 90)),
        ("100 * PD-L1+ tumour / (PD-L1+ tumour + negative)", 100 * 7 / (7 + 90)),
        ("positive - negative - 2+", 30 - 90 - 5),
        ("positive/negative/2", 30 / 90 / 2),
        ("2+ + 2+*2.5", 5 + 5 * 2.5),
        ("((cells)) / mm2", (30 + 90 + 7 + 5) / 1.5),
        ("positive / (negative - 90)", None),
    ],
)
def test_value(expression: str, expected: float | None) -> None:
    ratio = parse_ratio(f"Ki-67 index = {expression}", CLASSES)
    assert ratio.name == "Ki-67 index"
    assert ratio.value(COUNTS, 1.5) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('"1" / ("1" + "2")', 10 / 15),
        ('100 * "1" / 1.5', 100 * 10 / 1.5),
        ('"cells" / 4 - "mm2" * 1.0', 7 / 4 - 2),
        ('"+" / ("+" + "-")', 4 / 6),
    ],
)
def test_classes_in_quotes(expression: str, expected: float) -> None:
    counts = {"1": 10, "2": 5, "cells": 7, "mm2": 2, "+": 4, "-": 2}
    assert parse_ratio(f"a = {expression}", list(counts)).value(counts, 3.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("expression", "word"), [("1 / (1 + 2)", "1"), ("cells / 5", "cells"), ("7 / mm2", "mm2"), ("3 * 2", "2")]
)
def test_a_class_that_could_be_something_else_must_be_quoted(expression: str, word: str) -> None:
    with pytest.raises(UserError, match=f'is {word} the class\\? then write it in quotes, "{word}"'):
        parse_ratio(f"a = {expression}", ["1", "2", "cells", "mm2"])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("positive", "is not of the form"),
        ("a = ", "is not of the form"),
        ("a = positiv", "'positiv' is no class of the detector; it knows positive, negative, PD-L1.*, cells, mm2"),
        ("a = positives", "'positives' is no class"),
        ("a = positive / ", "--ratio .* at its end"),
        ("a = / positive", "--ratio .* at position 1$"),
        ("a = (positive + negative", "--ratio .* at position 1$"),
        ("a = positive negative", "--ratio .* at position 10$"),
        ("a = positive)", "--ratio .* at position 9$"),
        ("a = positive(negative)", "--ratio .* at position 1$"),
        ("a = - positive", "--ratio .* at position 1$"),
        ("a = 2 * * 3", "--ratio .* at position 5$"),
        ("a = " + "(" * 5_000, "--ratio"),
        ("a = __import__('os')", "is no class"),
    ],
)
def test_what_cannot_be_understood(line: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_ratio(line, CLASSES)


@pytest.mark.parametrize("name", ["cells", "slide", "positive cells", "positive per mm2", "unreadable tiles"])
def test_a_ratio_is_not_called_like_a_column(name: str) -> None:
    with pytest.raises(UserError, match=f"--ratio '{name}'"):
        parse_ratios([f"{name} = positive / negative"], CLASSES, columns_of(CLASSES))


def test_ratios_have_names_of_their_own() -> None:
    with pytest.raises(UserError, match="--ratio 'R'"):
        parse_ratios(["R = positive / negative", "R = negative / positive"], CLASSES, columns_of(CLASSES))
