"""What is found out before a run begins, and what is left of attempts that did not."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.signals import MARKER, STOPPED, StopSignal
from shared.training.distributed import World
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.run.setup import prepare, verify
from ssl_pretrain.train import train
from tests.ssl_pretrain import stub
from tests.ssl_pretrain.conftest import tissue, write_shards
from tests.ssl_pretrain.stub import changed


@pytest.fixture
def recipe(shards: Path, tmp_path: Path) -> PretrainingRecipe:
    return stub.recipe(shards, tmp_path, batch_size=8)


class Told(StopSignal):
    """Told to stop when it has been asked so often."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def received(self) -> str | None:
        self.left -= 1
        return "SIGTERM" if self.left < 0 else None


def test_nothing_is_written_where_the_run_cannot_begin(recipe: PretrainingRecipe, world: World, tmp_path: Path):
    (tmp_path / "folder.pth").mkdir()
    for change, sentence in (
        ({"out": tmp_path / "folder.pth"}, r"--out .*folder.pth is a folder"),
        ({"out": tmp_path / "weights.tar"}, r"--out .*weights.tar does not end in .pth"),
        ({"batch_size": 48, "samples_seen": 480}, r"holds 40 patches, fewer than one batch of 48; .*--batch-size"),
        ({"shards": tmp_path / "none"}, r"no folder of shards"),
    ):
        with pytest.raises(UserError, match=sentence):
            train(changed(recipe, **change), world, StopSignal())
    assert not recipe.run_dir.exists()


def test_settings_and_shards_may_change_until_there_is_a_checkpoint(recipe: PretrainingRecipe, world: World):
    """Advice from a failed attempt can be followed in the same folder."""
    assert train(recipe, world, StopSignal()) == 0
    other = changed(recipe, seed=7, shards=write_shards(recipe.shards.parent / "others", [17, 24], tissue))
    with pytest.raises(UserError, match=r"was started with seed=0, not 7; give another run folder"):
        prepare(other, world)
    with pytest.raises(UserError, match=r"not those that the run in .* began with"):
        prepare(changed(other, seed=0), world)
    for path in (recipe.out, recipe.run_dir / "out.pth", *recipe.run_dir.glob("checkpoint-*.pt")):
        path.unlink()
    assert train(other, world, StopSignal()) == 0
    assert json.loads((recipe.run_dir / "config.json").read_text())["seed"] == 7


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_damaged_memory_of_the_shards(recipe: PretrainingRecipe, world: World, content: str):
    assert train(changed(recipe, max_steps=1), world, StopSignal()) == 0
    (recipe.run_dir / "shards.json").write_text(content)
    with pytest.raises(UserError, match=r"shards.json is damaged; give another run folder with --run-dir"):
        train(recipe, world, StopSignal())


def test_told_to_stop_while_it_reads_the_shards_it_is_to_be_queued_again(
    recipe: PretrainingRecipe,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    (recipe.shards / "shard-000001.tar").write_bytes((recipe.shards / "shard-000000.tar").read_bytes())
    with pytest.raises(UserError, match=r"shard-000001.tar is damaged: its SHA-256"):
        verify(recipe, prepare(recipe, world)[1], world, Told(after=2))
    assert train(recipe, world, Told(after=1)) == STOPPED  # before it reads the second
    assert (tmp_path / "marker").exists() and not recipe.run_dir.exists()
    assert "stopped before its first step by SIGTERM; the same command goes on" in capsys.readouterr().out


def test_what_killed_attempts_left_is_swept_up(recipe: PretrainingRecipe, world: World, tmp_path: Path):
    assert train(changed(recipe, max_steps=1), world, StopSignal()) == 0
    left = [recipe.run_dir / ".checkpoint-000000009.pt.1.tmp", recipe.run_dir / "pictures" / ".x.png.1.tmp"]
    left += [tmp_path / ".out.pth.1.tmp"]
    others = tmp_path / ".other.pth.1.tmp"
    (recipe.run_dir / "pictures").mkdir(exist_ok=True)
    for path in (*left, others):
        path.touch()
    assert train(recipe, world, StopSignal()) == 0
    assert not any(path.exists() for path in left) and others.exists()
