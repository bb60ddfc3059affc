"""Ratios of cell counts that users define in a line: `Ki-67 = positive / (positive + negative)`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import UserError

# Beside the classes an expression may name these.
TOTAL, AREA = "cells", "mm2"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OPERATORS = "+-*/()"
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
            classes = {_quoted(name): count for name, count in counts.items()}
            return _value(self.tree, {TOTAL: sum(counts.values()), AREA: mm2, **classes})
        except ZeroDivisionError:
            return None


def parse_ratio(line: str, classes: Sequence[str]) -> Ratio:
    """`NAME = EXPRESSION` of classes, `cells`, `mm2`, numbers, + - * / and parentheses.

    Classes may stand in double quotes, and must where their names mean something else, too.

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
    """Operators, numbers, `cells`, `mm2`, and classes, these in quotes; of what fits, the longest is taken.

    Raises:
        UserError: something is unknown, or a class without quotes that could be something else.
    """
    words, rest = [], expression
    while rest := rest.lstrip():
        number = NUMBER.match(rest)
        others = [TOTAL, AREA, *OPERATORS, *([number[0]] if number else [])]
        names = {form: _quoted(name) for name in classes for form in (name, _quoted(name))}
        names |= {name: name for name in others}
        fitting = [name for name in names if rest.startswith(name) and _ends(name, rest[len(name) :])]
        word = max(fitting, key=len, default="")
        if not word:
            known = ", ".join([*classes, TOTAL, AREA])
            raise UserError(f'--ratio "{line}": {rest.split()[0]!r} is no class of the detector; it knows {known}')
        if word in others and word in classes and word not in OPERATORS:
            raise UserError(f'--ratio "{line}": is {word} the class? then write it in quotes, {_quoted(word)}')
        words.append(names[word])
        rest = rest[len(word) :]
    return words


def _quoted(name: str) -> str:
    return f'"{name}"'


def _ends(word: str, rest: str) -> bool:
    """Whether a word may end before `rest`: not within a longer one."""
    return word in OPERATORS or not rest[:1].isalnum()


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
            word = self.words[0].strip('"')
            raise UserError(f'--ratio "{self.line}" has {word!r} where an operator should stand')


def _value(tree: Node, values: Mapping[str, float]) -> float:
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, float):
        return tree
    operator, *sides = tree
    left, right = (_value(side, values) for side in sides)
    return {"+": left + right, "-": left - right, "*": left * right}[operator] if operator != "/" else left / right
