"""Training state: pruned, resumed from the newest whole file, refused when it belongs elsewhere."""

import resource
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.files import write_json
from shared.training import checkpoint


def save(folder: Path, step: int, recipe: str = "mae") -> Path:
    return checkpoint.save(folder, step, recipe, {"weights": torch.full((1000,), float(step))})


def test_the_newest_is_resumed_and_the_old_are_dropped(tmp_path: Path) -> None:
    assert checkpoint.resume(tmp_path, "mae") is None
    for step in (1, 5, 20):
        save(tmp_path, step)
    state = checkpoint.resume(tmp_path, "mae")
    assert state is not None
    assert state["step"] == 20
    assert state["weights"][0] == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000005.pt",
        "checkpoint-000000020.pt",
    ]


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25, 30):
        checkpoint.save(tmp_path, step, "mae", {}, keep_every=10)
    steps = sorted(int(path.stem.rpartition("-")[2]) for path in tmp_path.iterdir())
    assert steps == [10, 20, 25, 30]


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_cut_file_is_passed_over(tmp_path: Path, kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:kept])
    state = checkpoint.resume(tmp_path, "mae")
    assert state is not None
    assert state["step"] == 1
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(UserError, match="belongs to recipe 'mae', not 'dino'"):
        checkpoint.resume(tmp_path, "dino")
    torch.save({"state_dict": {}}, path)  # some other file under the name of a checkpoint
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        checkpoint.resume(tmp_path, "mae")


def test_other_settings_are_refused_unless_free(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"rate": 0.1, "scale": [0.5, 2.0], "workers": 2})
    same = {"rate": 0.1, "scale": (0.5, 2.0), "workers": 9}
    checkpoint.refuse_other_settings(tmp_path, same, free=("workers",))
    checkpoint.refuse_other_settings(tmp_path / "new", same, free=())
    nested = {"augment": {"crop": 448, "scale": [0.8, 1.25]}}
    write_json(tmp_path / "nested" / "config.json", nested)
    with pytest.raises(UserError, match=r"was started with augment\.crop=448, not 192; "):
        checkpoint.refuse_other_settings(tmp_path / "nested", {"augment": {"crop": 192, "scale": (0.8, 1.25)}}, ())
    with pytest.raises(UserError, match=r"was started with rate=0\.1, not 0\.2; .*--run-dir"):
        checkpoint.refuse_other_settings(tmp_path, {**same, "rate": 0.2}, free=("workers",))


def test_a_nested_setting_may_be_free(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"optimiser": {"lr": 0.1, "momentum": 0.9}})
    free = ("optimiser.lr",)
    checkpoint.refuse_other_settings(tmp_path, {"optimiser": {"lr": 0.2, "momentum": 0.9}}, free)
    with pytest.raises(UserError, match=r"optimiser\.momentum=0\.9"):
        checkpoint.refuse_other_settings(tmp_path, {"optimiser": {"lr": 0.2, "momentum": 0.8}}, free)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            UserError, match=r"cannot write .*checkpoint-000000002\.pt .*checkpoints before it are kept"
        ):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000001.pt"]


def test_a_fault_of_the_machine_is_not_taken_for_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoint-000000002.pt").mkdir()  # reading it is an OSError, as on a file server that is away
    with pytest.raises(
        UserError, match=r"checkpoint-000000002\.pt cannot be read now .*; nothing is lost, try again"
    ):
        checkpoint.resume(tmp_path, "mae")


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        checkpoint.refuse_other_settings(tmp_path, {}, ())
