"""`make structure`: measures of the code's structure and language, each beside its limit."""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import grimp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from shared.reporting.tables import table

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared", "patch_extraction", "ssl_pretrain", "finetune")
LONGEST_FUNCTION = 45
OPENINGS = re.compile(r"(What|Whether|Where|Who|Whose|Whom|Which|How|When|Why|Of)\b")
ENTRY_POINTS = ("__init__", "__main__")
# Limits that hold today; lower one when the code gets below it, raise none.
LIMITS = {
    "modules in the fullest folder": 12,
    "import circles": 0,
    "module names used more than once": 8,
    "public class names used more than once": 0,
    "docstrings that begin with a wh-word or Of, %": 2,
    "field docs that begin with a wh-word or Of": 0,
    f"functions over {LONGEST_FUNCTION} lines": 0,
    "README words": 1500,
    "README lines": 150,
}
# Those of ruff's rules, which `make structure` counts; tests leave this to `make lint`.
RULE_LIMITS = {"violations of D401": 0, "violations of PLR0913": 9}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def product_modules() -> dict[Path, ast.Module]:
    """Parse all modules of the four packages."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def measure() -> dict[str, float]:
    """Compute all measures that need no other program, by their names in the table."""
    modules = product_modules()
    plain = [path for path in modules if path.stem not in ENTRY_POINTS]
    nodes = [node for tree in modules.values() for node in ast.walk(tree)]
    docs = [doc for node in nodes if (doc := _docstring(node))]
    classes = (node.name for tree in modules.values() for node in tree.body if isinstance(node, ast.ClassDef))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        "modules in the fullest folder": max(Counter(path.parent for path in plain).values()),
        "import circles": import_circles(),
        "module names used more than once": _repeated(path.stem for path in plain),
        "public class names used more than once": _repeated(name for name in classes if name[0] != "_"),
        "docstrings that begin with a wh-word or Of, %": round(100 * _openings(docs) / len(docs), 1),
        "field docs that begin with a wh-word or Of": _openings(_field_docs(nodes)),
        f"functions over {LONGEST_FUNCTION} lines": sum(_lines(node) > LONGEST_FUNCTION for node in nodes),
        "README words": len(readme.split()),
        "README lines": len(readme.splitlines()),
        "lines of product code": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules),
    }


def import_circles() -> int:
    """Count groups of modules that import each other, directly or indirectly; imports for types do not count."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    numbers = {name: number for number, name in enumerate(sorted(graph.modules))}
    pairs = [(numbers[a], numbers[b]) for a in numbers for b in graph.find_modules_directly_imported_by(a)]
    rows, columns = zip(*pairs, strict=True)
    arrows = csr_array(([1] * len(pairs), (rows, columns)), shape=(len(numbers), len(numbers)))
    _, groups = connected_components(arrows, directed=True, connection="strong")
    return _repeated(groups.tolist())


def count_violations(*rules: str) -> dict[str, float]:
    """Count violations of each ruff rule in the whole repository, tests and excused ones included."""
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "ruff"
    words = f"{ruff} check --select {','.join(rules)} --exit-zero --ignore-noqa --output-format json .".split()
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    counts = Counter(violation["code"] for violation in json.loads(found))
    return {f"violations of {rule}": counts[rule] for rule in rules}


def _docstring(node: ast.AST) -> str | None:
    return ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | Function) else None


def _field_docs(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the strings below the fields of classes, which are the text of `--help`."""
    bodies = (node.body for node in nodes if isinstance(node, ast.ClassDef))
    for field, after in (pair for body in bodies for pair in itertools.pairwise(body)):
        match field, after:
            case ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                yield text


def _lines(node: ast.AST) -> int:
    return (node.end_lineno or 0) - node.lineno + 1 if isinstance(node, Function) else 0


def _openings(texts: Iterable[str]) -> int:
    return sum(bool(OPENINGS.match(text)) for text in texts)


def _repeated(names: Iterable[str]) -> int:
    return sum(count > 1 for count in Counter(names).values())


if __name__ == "__main__":
    measured = {**measure(), **count_violations("D401", "PLR0913")}
    rows = [[name, number, {**LIMITS, **RULE_LIMITS}.get(name, "")] for name, number in measured.items()]
    print(table(["measure", "now", "at most"], rows))
