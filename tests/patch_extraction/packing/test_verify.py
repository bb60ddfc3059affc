"""`--check`: a whole folder of shards passes, and everything that is wrong with one is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from patch_extraction.packing.verify import check_shards
from shared.errors import UserError
from tests.patch_extraction.conftest import COMMON, digests


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed[0], tmp_path / "copy"))


def test_a_whole_folder(copy, command):
    done = command("patch_extraction", "--check", copy)
    assert done.returncode == 0, done.stderr
    assert (
        f"{copy} is whole: {json.loads((copy / 'index.json').read_text())['samples']} patches of 3" in done.stdout
    )


def test_the_check_is_an_option_among_the_others(copy, harvest_here):
    assert "--check" in harvest_here("--help").stdout
    assert harvest_here("--workers", 2, f"--check={copy}").returncode == 0


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forge(out: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((out / "index.json").read_text())
    change(index)
    (out / "index.json").write_text(json.dumps(index))


def copy_shard(out: Path) -> None:
    """Make the second shard a copy of the first, with an index that agrees."""

    def change(index: dict) -> None:
        index["shards"][1] = index["shards"][0] | {"name": "shard-000001.tar"}
        index["samples"] = sum(shard["samples"] for shard in index["shards"])

    shutil.copy(out / "shard-000000.tar", out / "shard-000001.tar")
    forge(out, change)


DAMAGE = {
    "flipped": (lambda out: flip_byte(out / "shard-000000.tar"), "shard-000000.tar was changed: its SHA-256"),
    "cut": (lambda out: (out / "shard-000000.tar").write_bytes(bytes(9)), "has 9 bytes instead of"),
    "gone": (lambda out: (out / "shard-000001.tar").unlink(), "shard-000001.tar is gone"),
    "foreign": (
        lambda out: (out / "shard-000009.tar").touch(),
        "000009.tar is not listed in index.json: foreign",
    ),
    "journal": (
        lambda out: (out / ".packing.json").write_text('{"shards": []}'),
        ".packing.json: the last packing was interrupted",
    ),
    "doubled": (copy_shard, "18 patches occur more than once"),
    "counts": (
        lambda out: forge(out, lambda index: index["shards"][0].update(samples=3)),
        "shard-000000.tar holds 18 samples instead of 3",
    ),
    "total": (
        lambda out: forge(out, lambda index: index.update(samples=1)),
        "index.json was changed: it counts 1 patches, its",
    ),
    "slides": (
        lambda out: forge(out, lambda index: index.update(slides=7)),
        "index.json was changed: it counts 7 slides, but names others",
    ),
    "tars": (
        lambda out: forge(out, lambda index: index["tars"].popitem()),
        "index.json was changed: it counts 3 slides, but names others",
    ),
    "slide tar": (lambda out: flip_byte(next(out.glob("slides/plain*.tar"))), ".tar is gone or was changed"),
    "record": (lambda out: next(out.glob("slides/plain*.json")).unlink(), ".json is lost, damaged, or newer"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_is_named(copy, capsys, name):
    damage, sentence = DAMAGE[name]
    damage(copy)
    with pytest.raises(UserError, match=rf"wrong in {copy}; remove the files named as changed"):
        check_shards(copy)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong: ")]
    assert any(sentence in line for line in lines), lines
    assert len(lines) <= 2  # one cause, one or two symptoms


def test_what_is_removed_is_made_anew(undisturbed, copy, harvest_here, wsi_dir):
    """As the last sentence says: a changed shard and a changed tar of a slide, both of the right size."""
    for path in (copy / "shard-000000.tar", next(copy.glob("slides/plain*.tar"))):
        flip_byte(path)
        path.unlink()
    assert harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON).returncode == 0
    assert digests(copy) == digests(undisturbed[0])
    check_shards(copy)


def test_slides_tars_may_be_removed_to_make_room(copy, capsys):
    shutil.rmtree(copy / "slides")
    check_shards(copy)
    assert "is whole" in capsys.readouterr().out


def test_an_index_without_its_parts(copy):
    forge(copy, lambda index: index.pop("tars"))
    with pytest.raises(UserError, match=r"index\.json was changed \(KeyError: 'tars'\); remove it and start"):
        check_shards(copy)


@pytest.mark.parametrize("content", [None, "{", '{"shards": []}'])
def test_a_folder_without_an_index_of_ours(tmp_path, content):
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"holds no index\.json of a harvest; harvest into it"):
        check_shards(tmp_path)
