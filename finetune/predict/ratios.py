"""Ratios of cell counts that users define in a line: `Ki-67 = positive / (positive + negative)`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.command_line import UserError

# Beside the classes an expression may name these.
TOTAL, AREA = "cells", "mm2"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
Node = str | float | tuple[str, "Node", "Node"]


@dataclass(frozen=True)
class Ratio:
    """A name and what it stands for."""

    name: str
    expression: str
    tree: Node

    def value(self, counts: Mapping[str, int], mm2: float) -> float | None:
        """Of one slide; None where it divides by nothing."""
        try:
            return _value(self.tree, {TOTAL: sum(counts.values()), AREA: mm2, **counts})
        except ZeroDivisionError:
            return None


def parse_ratio(line: str, classes: Sequence[str]) -> Ratio:
    """`NAME = EXPRESSION` of classes, `cells`, `mm2`, numbers, + - * / and parentheses.

    Raises:
        UserError: says where it cannot be understood.
    """
    name, equals, expression = (part.strip() for part in line.partition("="))
    if not (name and equals and expression):
        raise UserError(f'--ratio "{line}" is not of the form "NAME = CLASS / (CLASS + CLASS)"')
    reader = _Reader(line, _words(line, expression, classes))
    tree = reader.sum()
    reader.end()
    return Ratio(name, expression, tree)


def _words(line: str, expression: str, classes: Sequence[str]) -> list[str]:
    """Operators, numbers and names; names may hold spaces and signs, and the longest that fits is taken."""
    names = sorted([*classes, TOTAL, AREA], key=len, reverse=True)
    words, rest = [], expression
    while rest := rest.lstrip():
        number = NUMBER.match(rest)
        fitting = [name for name in names if rest.startswith(name) and not rest[len(name) :][:1].isalnum()]
        if not (
            word := fitting[0] if fitting else number[0] if number else rest[0] if rest[0] in "+-*/()" else ""
        ):
            known = ", ".join([*classes, TOTAL, AREA])
            raise UserError(f'--ratio "{line}": {rest.split()[0]!r} is no class of the detector; it knows {known}')
        words.append(word)
        rest = rest[len(word) :]
    return words


class _Reader:
    """Reads words by the rules sum = product {+- product}, product = factor {*/ factor}."""

    def __init__(self, line: str, words: list[str]) -> None:
        self.line = line
        self.words = words

    def sum(self) -> Node:
        tree = self.product()
        while self.words and self.words[0] in "+-":
            tree = (self.words.pop(0), tree, self.product())
        return tree

    def product(self) -> Node:
        tree = self.factor()
        while self.words and self.words[0] in "*/":
            tree = (self.words.pop(0), tree, self.factor())
        return tree

    def factor(self) -> Node:
        word = self.words.pop(0) if self.words else ""
        if word == "(":
            tree = self.sum()
            if not self.words or self.words.pop(0) != ")":
                raise UserError(f'--ratio "{self.line}" lacks a closing parenthesis')
            return tree
        if not word or word in "+-*/)":
            raise UserError(
                f'--ratio "{self.line}" lacks a class or a number {f"before {word}" if word else "at its end"}'
            )
        return float(word) if NUMBER.fullmatch(word) else word

    def end(self) -> None:
        if self.words:
            raise UserError(f'--ratio "{self.line}" has {self.words[0]!r} where an operator should stand')


def _value(tree: Node, values: Mapping[str, float]) -> float:
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, float):
        return tree
    operator, *sides = tree
    left, right = (_value(side, values) for side in sides)
    return {"+": left + right, "-": left - right, "*": left * right}[operator] if operator != "/" else left / right
