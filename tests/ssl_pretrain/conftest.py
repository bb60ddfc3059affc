"""Shards to train on: flat colours that tell which image is which, or something like tissue."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image, ImageDraw

from shared.training.distributed import World
from tests.conftest import InProcess, signals_kept

Painter = Callable[[int], Image.Image]
# The command line of a run that takes a second or two.
SMALL = [
    *("--method.image-size", "64", "--method.decoder-dim", "32", "--method.decoder-depth", "1"),
    *("--batch-size", "8", "--samples-seen", "160", "--optimiser.warmup-samples", "32"),
    *("--loader.workers", "0", "--log-every", "1", "--monitor-every", "0"),
]


@pytest.fixture
def world() -> World:
    return World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards with 40 images of something like tissue."""
    return write_shards(tmp_path / "shards", [24, 16], tissue)


@pytest.fixture
def pretrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: InProcess):
    """Run the command line of the stage in this process; returns exit code, stdout and stderr."""
    from ssl_pretrain.__main__ import main

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # what is promised bit for bit is the CPU's
        return in_process(main, *args)

    return call


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Put back the handlers that a stage installs for its process."""
    with signals_kept():
        yield


def write_shards(folder: Path, counts: Sequence[int], painter: Painter, quality: int = 90) -> Path:
    """Shards whose image n shows `painter(n)`."""

    def sample(n: int) -> dict[str, bytes]:
        return {"jpg": jpeg(painter(n), quality), "json": json.dumps({"n": n}).encode()}

    return write_samples(folder, counts, sample, settings={"patch_mpp": 0.25})


def write_samples(
    folder: Path, counts: Sequence[int], sample: Callable[[int], dict[str, bytes]], **facts: object
) -> Path:
    """Shards as `patch_extraction` writes them, image n from the files of `sample(n)`; facts for the index."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, number = [], 0
    for index, count in enumerate(counts):
        path = folder / f"shard-{index:06d}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for _ in range(count):
                writer.write({"__key__": f"patch_{number}", **sample(number)})
                number += 1
        entries.append({"name": path.name, "samples": count, "sha256": sha256(path)})
    content = {"shards": entries, "samples": number, "mean": [0.7, 0.6, 0.65], "std": [0.2, 0.21, 0.19], **facts}
    (folder / "index.json").write_text(json.dumps(content))
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def flat(number: int) -> Image.Image:
    """Return an image of one colour, from which `number_of` reads the number (up to 4095) back."""
    red, green, blue = number % 16, number // 16 % 16, number // 256
    return Image.new("RGB", (16, 16), (red * 16 + 8, green * 16 + 8, blue * 16 + 8))


def number_of(image_CHW: torch.Tensor) -> int:
    red, green, blue = (image_CHW.float().mean(dim=(1, 2)) / 16).int().tolist()
    return red + 16 * green + 256 * blue


def tissue(number: int) -> Image.Image:
    """Pale ground with dark round cells, 96 px."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", (96, 96), tuple(int(c) for c in random.integers(200, 240, 3)))
    draw = ImageDraw.Draw(image)
    for x, y in random.integers(0, 96, (12, 2)):
        colour = (90, 80, 150) if random.random() < 0.5 else (120, 70, 40)
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour)
    return image


def gradient(number: int) -> Image.Image:
    """One colour on the left that turns into another on the right: easy to complete."""
    ends = np.random.default_rng(number).integers(0, 256, (2, 3))
    along = np.linspace(0, 1, 96)[None, :, None]
    row = ends[0] * (1 - along) + ends[1] * along
    return Image.fromarray(np.broadcast_to(row, (96, 96, 3)).astype(np.uint8))


def damage(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)
