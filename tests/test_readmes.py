"""READMEs name files and commands that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(page for folder in ROOT.glob("[!.]*/") for page in folder.rglob("README.md"))]
PAGES = [page for page in PAGES if not {"demo", "runs", "shards"} & set(page.relative_to(ROOT).parts)]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
MODULE = re.compile(r"python -m ((?:shared|patch_extraction|ssl_pretrain|finetune|tests)[\w.]*\w)")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_lead_to_files(page: Path):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_commands_exist(page: Path):
    modules = {name for name in MODULE.findall(page.read_text(encoding="utf-8")) if not name.endswith("NAME")}
    places = {name: ROOT.joinpath(*name.split(".")) for name in modules}
    missing = [
        name
        for name, place in places.items()
        if not place.with_suffix(".py").exists() and not (place / "__main__.py").exists()
    ]
    assert missing == []


def test_targets_of_make_exist(page: Path):
    targets = set(re.findall(r"^(?:make|`make) ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets <= defined
