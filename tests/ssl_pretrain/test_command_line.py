"""What users type, and the sentence they get where it cannot work."""

import json
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.ssl_pretrain.conftest import SMALL, damage, tissue, write_shards


def test_default_recipe_reads_shards_and_writes_mae_pth(tmp_path: Path, shards: Path, command: Command, pretrain):
    """Without a word but what makes it small; twice, to see the second do nothing."""
    small = ["--method.arch", "vit_tiny_patch16_224", *SMALL, "--max-steps", "2"]
    first = command("ssl_pretrain", *small, OMP_NUM_THREADS="1")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "mae.pth").exists() and (tmp_path / "runs" / "mae_vitb" / "config.json").exists()
    assert "mae_vitb: mae with vit_tiny_patch16_224" in first.stdout
    assert "8 images = 1 rank(s) x 8 x 1 accumulated" in first.stdout
    assert "160 images = 20 steps; stops after 2" in first.stdout
    assert "finished after 2 steps: weights in mae.pth, pictures in runs/mae_vitb/pictures" in first.stdout
    code, out, _ = pretrain(*small)
    assert code == 0 and "finished already, after 2 steps" in out


def refuses(result: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2 and one line on stderr with all the parts."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(part in lines[0] for part in parts), lines[0]


def test_unknown_recipe(pretrain, tmp_path: Path):
    refuses(pretrain("maee"), "there is no recipe 'maee'", "swav_resnet50", "mae_vitb_ihc, mae_demo")
    assert not (tmp_path / "runs").exists()


def test_missing_shards_through_a_real_process(command: Command, tmp_path: Path):
    done = command("ssl_pretrain")
    refuses(
        (done.returncode, done.stdout, done.stderr), "no folder of shards shards", "python -m patch_extraction"
    )
    assert list(tmp_path.iterdir()) == []


def test_empty_folder(pretrain, tmp_path: Path):
    (tmp_path / "shards").mkdir()
    refuses(pretrain("mae_demo"), "there are no shards in shards", "python -m patch_extraction")


def test_index_names_a_missing_shard(pretrain, shards: Path):
    (shards / "shard-000001.tar").unlink()
    refuses(pretrain("mae_demo"), "shards/shard-000001.tar, listed in index.json, cannot be read")


def test_shard_cut_in_half(pretrain, shards: Path, tmp_path: Path):
    damage(shards / "shard-000000.tar")
    refuses(pretrain("mae_demo"), "shards/shard-000000.tar is damaged: it is cut short", "to repack it")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "mae_demo.pth").exists()


def test_shard_that_was_changed(pretrain, shards: Path):
    content = bytearray((shards / "shard-000000.tar").read_bytes())
    content[5000] ^= 255
    (shards / "shard-000000.tar").write_bytes(content)
    sentence = "shard-000000.tar is damaged: its SHA-256 is not the one in index.json"
    refuses(pretrain("mae_demo", *SMALL), sentence)


def test_index_with_another_count(pretrain, shards: Path, tmp_path: Path):
    index = json.loads((shards / "index.json").read_text())
    index["shards"][0]["samples"] = 23
    (shards / "index.json").write_text(json.dumps(index))
    refuses(pretrain("mae_demo", *SMALL), "holds 24 images and index.json says 23")
    assert not (tmp_path / "mae_demo.pth").exists()


def test_run_folder_of_another_recipe_or_with_other_settings(pretrain, shards: Path):
    assert pretrain("mae_demo", *SMALL, "--max-steps", "1")[0] == 0
    other = ["--run-dir", "runs/mae_demo", "--method.arch", "vit_tiny_patch16_224"]
    refuses(pretrain("mae_vitb", *SMALL, *other), "runs/mae_demo was started with ", "--run-dir")
    refuses(pretrain("mae_demo", *SMALL, "--seed", "7"), "was started with seed=0, not 7", "--run-dir")


def test_shards_that_changed_under_a_run(pretrain, shards: Path):
    assert pretrain("mae_demo", *SMALL, "--max-steps", "1")[0] == 0
    write_shards(shards, [24, 17], tissue)
    refuses(pretrain("mae_demo", *SMALL), "not those that the run in runs/mae_demo began with", "--run-dir")


def test_all_checkpoints_damaged(pretrain, shards: Path, tmp_path: Path):
    assert pretrain("mae_demo", *SMALL, "--max-steps", "1")[0] == 0
    for path in (tmp_path / "runs" / "mae_demo").glob("*.pt"):
        damage(path)
    refuses(pretrain("mae_demo", *SMALL), "no checkpoint in runs/mae_demo can be read")


def test_too_few_patches_for_a_batch(pretrain, shards: Path):
    few = ["--batch-size", "64", "--samples-seen", "640"]
    refuses(pretrain("mae_demo", *SMALL, *few), "holds 40 patches, fewer than one batch of 64", "--batch-size")


def test_loss_that_blows_up_keeps_the_last_good_checkpoint(pretrain, shards: Path, tmp_path: Path):
    wild = ["--optimiser.base-lr", "1e25", "--checkpoint-every", "1"]
    refuses(
        pretrain("mae_demo", *SMALL, *wild), "not a number at step", "kept in runs/mae_demo", "--optimiser.base-lr"
    )
    assert not (tmp_path / "mae_demo.pth").exists()
    assert (tmp_path / "runs" / "mae_demo" / "checkpoint-000000001.pt").exists()


@pytest.mark.parametrize("words", [["--batch-size", "many"], ["--colour", "red"], ["mae_demo", "extra"]])
def test_words_that_mean_nothing(pretrain, words: list[str]):
    code, _, err = pretrain(*words)
    assert code == 2 and "Traceback" not in err


def test_swav_for_few_images_at_once_is_refused_before_anything_is_written(shards: Path, pretrain, tmp_path: Path):
    refuses(pretrain("swav_resnet50"), "swav_resnet50_256", "--micro-batch 4096")
    assert not (tmp_path / "runs").exists()
