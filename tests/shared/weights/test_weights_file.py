"""Weights files: round trips, foreign files, what fits and what does not."""

import argparse
import json
import resource
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from shared.errors import UserError
from shared.training import checkpoint
from shared.weights.weights_file import IMAGENET_MEAN, SUFFIXES, check_destination, load_into, publish, read, write

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(3)}
    write(tmp_path / name, tensors, {"arch": TINY, "mean": [0.1, 0.2, 0.3], "wörd": 1})
    weights = read(tmp_path / name)
    assert all(torch.equal(weights.tensors[key], tensors[key]) for key in tensors)
    assert (weights.arch, weights.mean, weights.metadata["wörd"]) == (TINY, (0.1, 0.2, 0.3), 1)


def test_the_architecture_is_recognised_by_names_and_shapes(tmp_path: Path) -> None:
    for arch in (TINY, "vit_small_patch16_224", "resnet50"):
        torch.save({"model": timm.create_model(arch).state_dict(), "epoch": 3}, tmp_path / "foreign.pth")
        weights = read(tmp_path / "foreign.pth")
        assert weights.arch == arch
        assert weights.mean == IMAGENET_MEAN
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="is no ResNet-50 and no plain ViT"):
        _ = read(tmp_path / "foreign.pth").arch


def test_position_embeddings_are_resampled_to_the_trunk_s_grid(tmp_path: Path) -> None:
    source = timm.create_model(TINY, num_classes=0)
    rows = torch.linspace(-1, 1, 14)
    source.pos_embed.data[0, 1:, 0] = rows.repeat_interleave(14)  # a ramp from top to bottom
    write(tmp_path / "a.pth", source.state_dict(), {})
    trunk = timm.create_model(TINY, num_classes=0, img_size=448, class_token=False, global_pool="avg")
    report = load_into(trunk, read(tmp_path / "a.pth"))
    assert "pos_embed" in report.used
    grid = trunk.pos_embed.data[0, :, 0].view(28, 28)
    assert torch.allclose(grid[:, 0], grid[:, 27], atol=1e-5)
    assert torch.allclose(
        grid[4:24, 0],
        torch.nn.functional.interpolate(rows[None, None], 28, mode="linear", align_corners=False)[0, 0, 4:24],
        atol=1e-3,
    )


def test_another_network_s_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.pth", timm.create_model(TINY).state_dict(), {})
    with pytest.raises(UserError, match=r"fits only \d+ of \d+ tensors"):
        load_into(timm.create_model("vit_small_patch16_224"), read(tmp_path / "a.pth"))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self):
            return (print, ("code from a pickle ran",))

    torch.save({"a": Payload()}, tmp_path / "pickle.pth")
    torch.save({"step": 3, "name": "x"}, tmp_path / "plain.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    torch.save({"model": {"a": torch.zeros(9)}, "args": Path("x")}, tmp_path / "path.pth")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "path.pth").read_bytes()[:500])
    (tmp_path / "folder").mkdir()
    checkpoint.save(tmp_path, 1, "mae", {})
    for name, sentence in {
        "none.pth": "there is no weights file",
        "pickle.pth": "holds print beside its tensors, and loading that could run code; if you trust its source",
        "path.pth": "holds pathlib.PosixPath beside its tensors",
        "text.pth": "is no file of torch.save",
        "cut.pth": "is cut short or holds more than tensors",
        "script.pth": "is a TorchScript program, which is not run",
        "folder": "is a folder; give the weights file in it",
        "plain.pth": "holds no tensors under names",
        "list.pth": "holds a list, not tensors under names",
        "a.safetensors": "cannot be read as safetensors",
        "checkpoint-000000001.pt": "is the training state of a run; give the weights it exported",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    assert "code from a pickle ran" not in capfd.readouterr().out


def test_an_argument_parser_s_namespace_is_let_through_and_runs_nothing(tmp_path: Path) -> None:
    """Official MAE and DINO files hold one; its attributes may be anything but other classes."""
    args = argparse.Namespace(model="mae", nested=argparse.Namespace(lr=0.1), __reduce__="x")
    for zipped in (True, False):
        path = tmp_path / "training.pth"
        torch.save({"model": {"a": torch.ones(2)}, "args": args}, path, _use_new_zipfile_serialization=zipped)
        assert torch.equal(read(path).tensors["a"], torch.ones(2))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # nobody else's loading is widened
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(run=print)}, path)
    with pytest.raises(UserError, match="holds print beside its tensors"):
        read(path)


def test_publishing_keeps_another_run_s_file(tmp_path: Path) -> None:
    out = tmp_path / "mae.pth"
    for run, value in [("first", 1), ("first", 2), ("second", 3)]:
        write(tmp_path / "run.pth", {"a": torch.tensor(value)}, {"run_id": run})
        publish(tmp_path / "run.pth", out)
    assert read(out).tensors["a"] == 3
    assert json.loads(torch.load(tmp_path / "mae.pth.bak")["metadata"])["run_id"] == "first"
    assert read(tmp_path / "mae.pth.bak").tensors["a"] == 2


def test_no_bak_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mae.pth"
    for run in ("first", "second", "third"):
        write(tmp_path / "run.pth", {"a": torch.zeros(1)}, {"run_id": run})
        publish(tmp_path / "run.pth", out)
    kept = {path.name: read(path).metadata["run_id"] for path in tmp_path.glob("mae.*")}
    assert kept == {"mae.pth": "third", "mae.pth.bak": "first", "mae.pth.bak2": "second"}
    assert capsys.readouterr().out.splitlines() == [
        f"note: {out} was of another origin; it is kept as mae.pth.bak",
        f"note: {out} was of another origin; it is kept as mae.pth.bak2",
    ]


def test_residual_networks_and_transformers_of_other_depths_are_not_mistaken(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet101").state_dict(), tmp_path / "resnet101.pth")
    torch.save(timm.create_model(TINY, depth=6).state_dict(), tmp_path / "shallow.pth")
    for name in ("resnet101.pth", "shallow.pth"):
        with pytest.raises(UserError, match="is no ResNet-50 and no plain ViT"):
            _ = read(tmp_path / name).arch


def test_registers_give_up_their_position_embeddings(tmp_path: Path) -> None:
    source = timm.create_model(TINY, num_classes=0, reg_tokens=4)
    write(tmp_path / "registers.pth", source.state_dict(), {"arch": TINY})
    trunk = timm.create_model(TINY, num_classes=0, class_token=False, global_pool="avg")
    report = load_into(trunk, read(tmp_path / "registers.pth"))
    assert "reg_token" in report.dropped
    assert torch.equal(trunk.pos_embed, source.pos_embed[:, 5:])


def test_position_embeddings_that_cannot_be_fitted_are_refused(tmp_path: Path) -> None:
    tensors = timm.create_model(TINY, num_classes=0, img_size=(224, 160)).state_dict()
    write(tmp_path / "oblong.pth", tensors, {"arch": TINY})
    with pytest.raises(UserError, match=r"pos_embed in .*oblong.pth \(1, 141, 192\) does not fit the trunk"):
        load_into(timm.create_model(TINY, num_classes=0), read(tmp_path / "oblong.pth"))


@pytest.mark.parametrize(
    ("file", "settings", "text", "mean"),
    [
        ("model.safetensors", "config.json", '{"pretrained_cfg": {"mean": [0.7, 0.5, 0.6]}}', (0.7, 0.5, 0.6)),
        ("pytorch_model.bin", "preprocessor_config.json", '{"image_mean": [0.5, 0.5, 0.5]}', (0.5, 0.5, 0.5)),
        ("mine.safetensors", "config.json", '{"pretrained_cfg": {"mean": [0.7, 0.5, 0.6]}}', IMAGENET_MEAN),
        ("model.safetensors", "config.json", '{"architectures": ["ViTModel"]}', IMAGENET_MEAN),
        ("model.safetensors", "config.json", '{"pretrained_cfg": null}', IMAGENET_MEAN),
    ],
)
def test_a_hub_s_normalisation_lies_beside_the_weights(
    tmp_path: Path, file: str, settings: str, text: str, mean: tuple[float, ...]
) -> None:
    tensors = {"conv1.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / file) if file.endswith("s") else torch.save(tensors, tmp_path / file)
    (tmp_path / settings).write_text(text)
    assert read(tmp_path / file).mean == mean


def test_a_hub_s_damaged_settings_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    for text, sentence in {
        "{": r"config\.json, beside the weights, is damaged",
        '{"pretrained_cfg": {"mean": 3}}': r"metadata in .*pytorch_model\.bin are damaged",
    }.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("metadata", ["{", "[1]", '{"mean": 0.5}', '{"std": [1, 2]}', '{"mean": [1, 2, 300]}'])
def test_damaged_metadata_are_refused(tmp_path: Path, metadata: str) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "metadata": metadata}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"the metadata in .*a\.pth are damaged"):
        read(tmp_path / "a.pth")


def test_publishing_on_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "mae.pth", {"a": torch.tensor(1)}, {"run_id": "old"})
    write(tmp_path / "run.pth", {"a": torch.zeros(9999)}, {"run_id": "new"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*mae\.pth .*; the weights are in .*run\.pth"):
            publish(tmp_path / "run.pth", tmp_path / "mae.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path / "mae.pth").metadata == {"run_id": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mae.pth", "run.pth"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_colleagues_may_read_what_was_written(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / f"w{suffix}", {"a": torch.zeros(2)}, {})
    assert (tmp_path / f"w{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_publishing_under_another_suffix_writes_the_other_format(tmp_path: Path) -> None:
    write(tmp_path / "run.pth", {"a": torch.tensor(1)}, {"run_id": "x"})
    publish(tmp_path / "run.pth", tmp_path / "out.safetensors")
    assert read(tmp_path / "out.safetensors").metadata == {"run_id": "x"}


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "file").touch()
    for out, sentence in {
        "folder.pth": "is a folder",
        "weights.pt": "does not end in .pth or .safetensors",
        "file/weights.pth": "cannot be written .*file",
    }.items():
        with pytest.raises(UserError, match=sentence):
            check_destination(tmp_path / out)
    check_destination(tmp_path / "new" / "folder" / "weights.pth")
