"""Ratios of cell counts that users define in a line: `Ki-67 = positive / (positive + negative)`."""

import ast
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from shared.errors import UserError

# Beside the classes an expression may name these.
TOTAL, AREA = "cells", "mm2"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
SIGNS = "+-*/()"
NODES = (ast.BinOp, ast.Name, ast.Constant, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.Div)
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass(frozen=True)
class Ratio:
    """Named expression of cell counts."""

    name: str
    expression: str
    tree: ast.expr
    """The expression with the class of label N as the variable `_N`."""

    def value(self, counts: Mapping[str, int], mm2: float) -> float | None:
        """Value of one slide; None where it divides by zero.

        Args:
            counts: Cells of every class, in the order of labels.
            mm2: Area.
        """
        classes = {f"_{label}": count for label, count in enumerate(counts.values())}
        try:
            return _value(self.tree, {TOTAL: sum(counts.values()), AREA: mm2, **classes})
        except ZeroDivisionError:
            return None


def parse_ratios(lines: Sequence[str], classes: Sequence[str], taken: Collection[str]) -> tuple[Ratio, ...]:
    """Parse every `--ratio`.

    Args:
        lines: As given.
        classes: Classes of the detector.
        taken: Columns of the table of slides, which no ratio may be called.

    Raises:
        UserError: one cannot be parsed, or two columns would have one name.
    """
    ratios = tuple(parse_ratio(line, classes) for line in lines)
    names = [ratio.name for ratio in ratios]
    for name in names:
        if name in taken or names.count(name) > 1:
            raise UserError(f"--ratio {name!r}: summary.csv has a column of this name already; choose another")
    return ratios


def parse_ratio(line: str, classes: Sequence[str]) -> Ratio:
    """Parse `NAME = EXPRESSION` of classes, `cells`, `mm2`, numbers, + - * / and parentheses.

    Classes may be in double quotes, and must be where their names mean something else, too.

    Raises:
        UserError: names the word that has no meaning there.
    """
    name, equals, expression = (part.strip() for part in line.partition("="))
    if not (name and equals and expression):
        raise UserError(f'--ratio "{line}" is not of the form "NAME = CLASS / (CLASS + CLASS)"')
    words = _words(line, expression, classes)
    try:
        tree = ast.parse(" ".join(words.values()), mode="eval").body
        _require_arithmetic(tree)
    except (SyntaxError, RecursionError, MemoryError) as error:
        what = f'--ratio "{line}" is no arithmetic of classes, {TOTAL}, {AREA} and numbers'
        raise UserError(f"{what}; check it {_place(error, words)}") from error
    return Ratio(name, expression, tree)


def _words(line: str, expression: str, classes: Sequence[str]) -> dict[int, str]:
    """Words of an expression by their position in it, classes as `_LABEL`; of what fits, the longest is taken.

    Raises:
        UserError: a word is unknown, or is a class without quotes that could be something else.
    """
    words, rest = {}, expression
    while rest := rest.lstrip():
        number = NUMBER.match(rest)
        others = [TOTAL, AREA, *SIGNS, *([number[0]] if number else [])]
        names = {form: f"_{label}" for label, name in enumerate(classes) for form in (name, f'"{name}"')}
        names |= {name: name for name in others}
        fitting = [name for name in names if rest.startswith(name) and _ends(name, rest[len(name) :])]
        word = max(fitting, key=len, default="")
        if not word:
            known = ", ".join([*classes, TOTAL, AREA])
            raise UserError(f'--ratio "{line}": {rest.split()[0]!r} is no class of the detector; it knows {known}')
        if word in others and word in classes and word not in SIGNS:
            raise UserError(f'--ratio "{line}": is {word} the class? then write it in quotes, "{word}"')
        words[len(expression) - len(rest)] = names[word]
        rest = rest[len(word) :]
    return words


def _ends(word: str, rest: str) -> bool:
    """Check that a word is not the beginning of a longer one."""
    return word in SIGNS or not rest[:1].isalnum()


def _require_arithmetic(tree: ast.expr) -> None:
    """Refuse calls, signs and everything else that Python knows beside `OPERATIONS`."""
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            raise SyntaxError("no arithmetic", ("", 1, getattr(node, "col_offset", 0) + 1, ""))


def _place(error: BaseException, words: Mapping[int, str]) -> str:
    """Place of an error in the expression: `at position N`, counted from 1."""
    offset, end = getattr(error, "offset", None) or len(words) * 99, 0
    for position, word in words.items():
        end += len(word) + 1  # words were joined by blanks
        if offset <= end:
            return f"at position {position + 1}"
    return "at its end"


def _value(tree: ast.expr, values: Mapping[str, float]) -> float:
    match tree:
        case ast.Name():
            return values[tree.id]
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.BinOp():
            value: float = OPERATIONS[type(tree.op)](_value(tree.left, values), _value(tree.right, values))
            return value
    raise AssertionError(f"{tree} passed _require_arithmetic")
