"""The promises of the loader, with real worker processes."""

import io
import itertools
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.training import batch_workers
from shared.training.distributed import World
from ssl_pretrain.data import crops
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.epoch_order import EpochPartition, Position, buffered_order, epoch_segments
from ssl_pretrain.data.shard_loader import LoaderConfig, ShardLoader
from ssl_pretrain.data.shard_set import ShardSet, open_shards
from ssl_pretrain.inspection.monitor import sample_patches
from tests.conftest import ENVIRONMENT
from tests.ssl_pretrain.conftest import damage, flat, jpeg, number_of, tissue, write_samples, write_shards

UNEVEN = [400, 31, 7, 250, 1, 199, 320, 64, 300, 265, 222, 178]  # 2,237 images in 12 shards
BEGINNING = Position()
CROPS = (Crop(size=8, scale=(0.5, 1.0)),)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shards(write_shards(tmp_path_factory.mktemp("uneven"), UNEVEN, flat, quality=95))


def batches(
    shard_set: ShardSet,
    layout: EpochPartition,
    count: int,
    rank: int = 0,
    start: Position = BEGINNING,
    seed: int = 0,
    crops: tuple[Crop, ...] = CROPS,
    decode: Literal["cpu", "gpu"] = "cpu",
) -> list[list[torch.Tensor]]:
    """Return the next batches of a rank, from as many real workers as the layout says."""
    world = World(rank, 0, layout.ranks, torch.device("cpu"))
    config = LoaderConfig(workers=layout.workers, decode=decode)
    with ShardLoader(shard_set, crops, config, layout, world, seed, start) as loader:
        return [loader.take() for _ in range(count)]


def numbers(found: list[list[torch.Tensor]]) -> list[int]:
    return [number_of(image_CHW) for views in found for image_CHW in views[0]]


def test_12_uneven_shards_on_8_ranks_with_3_workers(uneven: ShardSet):
    """Two epochs: nobody sees an image twice in one, 99 % are seen, the orders differ, no rank is left waiting."""
    layout = EpochPartition(batch=2, ranks=8, workers=3, buffer=50)
    an_epoch = layout.batches(uneven.samples)
    seen: list[list[int]] = [[], []]
    for rank in range(layout.ranks):
        found = batches(uneven, layout, 2 * an_epoch, rank)
        for epoch in range(2):
            seen[epoch] += numbers(found[epoch * an_epoch : (epoch + 1) * an_epoch])
    for epoch in range(2):
        assert max(Counter(seen[epoch]).values()) == 1
        assert len(seen[epoch]) == an_epoch * 2 * 8 >= 0.99 * 2237
    assert seen[0] != seen[1] and sorted(seen[0]) != seen[0]
    assert set(seen[0]) != set(seen[1])  # what is left out changes


def test_one_shard_is_shared_by_8_ranks_with_3_workers(tmp_path: Path):
    """Fewer shards than processes: every rank still gets its batches, and nobody another's images."""
    shard_set = open_shards(write_shards(tmp_path, [53], flat, quality=95))
    layout = EpochPartition(batch=2, ranks=8, workers=3, buffer=50)
    assert layout.batches(shard_set.samples) == 3
    seen = [number for rank in range(8) for number in numbers(batches(shard_set, layout, 3, rank))]
    assert len(seen) == len(set(seen)) == 48 and set(seen) <= set(range(53))


@pytest.mark.parametrize("rank", [0, 5])
def test_interrupted_at_random_batches_the_uneven_shards_go_on_the_same(uneven: ShardSet, rank: int):
    """12 shards, 8 ranks, 3 workers, two and a half epochs in six pieces, each read by new processes."""
    layout = EpochPartition(batch=4, ranks=8, workers=3, buffer=50)
    an_epoch = layout.batches(uneven.samples)
    total = 5 * an_epoch // 2
    whole = batches(uneven, layout, total, rank)
    cuts = sorted(np.random.default_rng(rank).choice(range(1, total), 5, replace=False).tolist())
    pieces = []
    for first, last in itertools.pairwise([0, *cuts, total]):
        pieces += batches(uneven, layout, last - first, rank, Position.after(first, an_epoch))
    assert len(pieces) == total
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*whole), itertools.chain(*pieces), strict=True))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("taken", [1, 7, 12, 13, 29])
def test_resumed_anywhere_the_sequence_is_the_same(tmp_path: Path, workers: int, taken: int):
    """Bit for bit, crops included, within an epoch and over its end (12 batches are an epoch)."""
    shard_set = open_shards(write_shards(tmp_path, [20, 9, 21], tissue))
    layout = EpochPartition(batch=2, ranks=2, workers=max(workers, 1), buffer=7)
    assert layout.batches(shard_set.samples) == 12
    world = World(1, 0, 2, torch.device("cpu"))
    crops = (Crop(size=16, scale=(0.2, 1.0)), Crop(size=8, scale=(0.1, 0.3), count=2))
    arguments = (shard_set, crops, LoaderConfig(workers=workers), layout, world, 5)
    with ShardLoader(*arguments, Position()) as loader:
        before = [loader.take() for _ in range(taken)]
        position = loader.position
        expected = [loader.take() for _ in range(14)]
    assert len(before[0]) == 3 and position == Position(taken // 12, taken % 12)
    with ShardLoader(*arguments, position) as loader:
        for views in expected:
            assert all(torch.equal(a, b) for a, b in zip(views, loader.take(), strict=True))


def test_what_was_seen_is_not_decoded_again(uneven: ShardSet, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    decode = crops.decode
    monkeypatch.setattr(crops, "decode", lambda image: decoded.append(1) or decode(image))
    world = World(0, 0, 1, torch.device("cpu"))
    layout = EpochPartition(batch=10, ranks=1, workers=1, buffer=100)
    with ShardLoader(uneven, CROPS, LoaderConfig(workers=0), layout, world, 0, Position(0, 200)) as loader:
        loader.take()
    assert len(decoded) == 10


def test_decoded_on_the_training_device_the_batches_are_the_same(uneven: ShardSet):
    """Which is the CPU here, so that even the pixels are."""
    layout = EpochPartition(batch=4, ranks=2, workers=2, buffer=40)
    crops = (*CROPS, Crop(size=16, scale=(0.1, 0.5), count=2))
    start = Position(1, 7)
    expected, found = (batches(uneven, layout, 9, 1, start, 3, crops, where) for where in ("cpu", "gpu"))
    for views, same in zip(expected, found, strict=True):
        assert len(views) == len(same) == 3
        assert all(map(torch.equal, views, same))


@pytest.mark.gpu
def test_decoded_on_a_gpu_the_crops_look_the_same(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [12], tissue))
    layout, crops = EpochPartition(batch=12, ranks=1, workers=1, buffer=4), (Crop(size=64, scale=(0.2, 1.0)),)
    (expected,) = batches(shard_set, layout, 1, crops=crops)[0]
    arguments = (LoaderConfig(workers=1, decode="gpu"), layout, World(0, 0, 1, torch.device("cuda")), 0, BEGINNING)
    with ShardLoader(shard_set, crops, *arguments) as loader:
        (found,) = loader.take()
    assert found.device.type == "cuda"
    assert (found.cpu().float() - expected.float()).abs().mean() < 2


def test_seeds_and_epochs_give_other_orders_and_crops(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [12], tissue))
    layout = EpochPartition(batch=12, ranks=1, workers=1, buffer=100)
    crops = (Crop(size=16, scale=(0.2, 1.0)),)
    first, second = batches(shard_set, layout, 2, crops=crops)
    (again,) = batches(shard_set, layout, 1, crops=crops)
    (other,) = batches(shard_set, layout, 1, crops=crops, seed=1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], other[0])


def test_segments_of_an_epoch_cover_every_image_once():
    for epoch in range(5):
        cuts = [0, 1, 100, 100, 900, 2237]
        seen: Counter[tuple[int, int]] = Counter()
        for first, last in itertools.pairwise(cuts):
            for segment in epoch_segments(UNEVEN, 3, epoch, first, last):
                seen.update((segment.shard, number) for number in range(segment.first, segment.last))
        assert len(seen) == 2237 and set(seen.values()) == {1}


def test_buffer_holds_no_more_than_its_size_and_shuffles():
    order = buffered_order(1000, 50, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert all(place <= emitted + 50 for emitted, place in enumerate(order))
    assert np.corrcoef(order[:50], range(50))[0, 1] < 0.9
    assert sorted(buffered_order(5, 50, np.random.default_rng(0))) == list(range(5))
    assert buffered_order(0, 50, np.random.default_rng(0)) == []


def test_fewer_images_than_a_batch(tmp_path: Path):
    shard_set = open_shards(write_shards(tmp_path, [5], flat))
    with pytest.raises(UserError, match=r"holds 5 patches, fewer than one batch of 8; .*--batch-size"):
        batches(shard_set, EpochPartition(batch=4, ranks=2, workers=1, buffer=10), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_shows_only_while_reading_ends_in_one_sentence(tmp_path: Path, workers: int):
    shard_set = open_shards(write_shards(tmp_path, [40], tissue))
    damage(tmp_path / "shard-000000.tar")
    layout = EpochPartition(batch=2, ranks=1, workers=max(workers, 1), buffer=4)
    world = World(0, 0, 1, torch.device("cpu"))
    with (
        ShardLoader(shard_set, CROPS, LoaderConfig(workers=workers), layout, world, 0, Position()) as loader,
        pytest.raises(UserError, match=r"^the shard \S+shard-000000.tar is damaged: it is cut short; [^\n]*$"),
    ):
        for _ in range(20):
            loader.take()


WHOSE_WORKERS_END = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from shared.errors import UserError
from shared.training.distributed import World
from ssl_pretrain.data import crops, shard_loader
from ssl_pretrain.data.epoch_order import EpochPartition, Position
from ssl_pretrain.data.shard_set import open_shards

def wait_or_fail(*_):
    if (folder / "fail").exists():
        raise ZeroDivisionError("a mistake of ours")
    time.sleep(0.5)

def take():
    partition = EpochPartition(4, 1, 2, 10)
    arguments = shard_loader.LoaderConfig(workers=2), partition, World(0, 0, 1, torch.device("cpu"))
    kinds = (crops.Crop(size=8, scale=(0.5, 1.0)),)
    with shard_loader.ShardLoader(open_shards(folder), kinds, *arguments, 0, Position()) as loader:
        if not (folder / "fail").exists():
            threading.Timer(0.3, lambda: os.kill(loader._batches.processes[1].pid, signal.SIGKILL)).start()
        loader.take()

folder = Path(sys.argv[1])
crops.cut = wait_or_fail
try:
    take()
except UserError as error:
    print(error)
(folder / "fail").touch()
take()
"""


def test_process_ends_when_workers_are_killed_or_fail(tmp_path: Path):
    """Workers ignore TERM, with which multiprocessing would end them at exit; and then wait for them forever."""
    write_shards(tmp_path, [40], flat)
    words = [sys.executable, "-c", WHOSE_WORKERS_END, str(tmp_path)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("a loader process was killed, ")
    assert done.stdout.endswith("lower --loader.workers or --loader.buffer\n")
    assert done.returncode == 1 and "a mistake of ours" in done.stderr


@pytest.mark.parametrize("content", [b"", b"no JPEG at all"])
def test_shard_without_an_image_that_can_be_decoded_is_named_by_loader_and_monitor(tmp_path: Path, content: bytes):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        member = tarfile.TarInfo("some/patch.jpg")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    shard_set = open_shards(tmp_path)
    for decode in ("cpu", "gpu"):
        with pytest.raises(
            UserError, match=r"^the shard \S+/shard.tar is damaged: some/patch .*replace or remove it$"
        ):
            batches(shard_set, EpochPartition(batch=1, ranks=1, workers=1, buffer=4), 1, decode=decode)
    with pytest.raises(UserError, match=r"^the shard \S+/shard.tar is damaged: .*replace or remove it$"):
        sample_patches(shard_set, CROPS[0], 2)


def with_bad_images(folder: Path, count: int, bad: set[int]) -> ShardSet:
    """Return a shard in which the images of some numbers are cut in half."""

    def sample(n: int) -> dict[str, bytes]:
        content = jpeg(flat(n), 95)
        return {"jpg": content[: len(content) // 2] if n in bad else content}

    return open_shards(write_samples(folder, [count], sample))


@pytest.mark.parametrize("decode", ["cpu", "gpu"])
@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_replaced_by_neighbours_and_named_once(
    tmp_path: Path, decode: Literal["cpu", "gpu"], workers: int, capsys: pytest.CaptureFixture[str]
):
    bad = {0, 7}
    shard_set = with_bad_images(tmp_path, 200, bad)
    layout, world = EpochPartition(4, 1, max(workers, 1), buffer=1), World(0, 0, 1, torch.device("cpu"))
    arguments = (
        shard_set,
        CROPS,
        LoaderConfig(workers=workers, buffer=1, decode=decode),
        layout,
        world,
        0,
        BEGINNING,
    )
    with ShardLoader(*arguments) as loader:
        epoch = numbers([loader.take() for _ in range(50)])
        again = numbers([loader.take() for _ in range(50)])
        loader.exchange_undecodable(world)
        found = loader.undecodable
    assert set(epoch) == set(again) == set(range(200)) - bad
    assert sorted(Counter(epoch).values())[-2:] == [2, 2]  # each bad image's place is taken by another
    assert found == {"shard-000000.tar: patch_0", "shard-000000.tar: patch_7"}
    err = capsys.readouterr().err
    assert all(err.count(f"{name} cannot be decoded") == 1 for name in found)
    with ShardLoader(*arguments, found) as resumed:  # known already
        for _ in range(50):
            resumed.take()
    assert "cannot be decoded" not in capsys.readouterr().err


def test_more_than_one_percent_of_undecodable_images_end_the_run(tmp_path: Path):
    shard_set = with_bad_images(tmp_path, 200, {3, 50, 120})
    with pytest.raises(UserError, match=rf"^3 images in {tmp_path} .*1% .*shard-000000.tar"):
        batches(shard_set, EpochPartition(4, 1, 1, buffer=10), 50)


def test_batches_through_pipes_are_the_same(uneven: ShardSet, monkeypatch: pytest.MonkeyPatch):
    layout = EpochPartition(batch=4, ranks=1, workers=2, buffer=40)
    expected = batches(uneven, layout, 6)
    monkeypatch.setattr(batch_workers, "SHARED_MEMORY", Path("/absent"))
    found = batches(uneven, layout, 6)
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*expected), itertools.chain(*found), strict=True))
