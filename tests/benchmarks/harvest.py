"""`python -m tests.benchmarks.harvest SLIDES [PYTHON]`: harvesting by OpenSlide and by tiles read directly.

SLIDES is a folder with two slides of JPEG tiles, `CD34_ihc_40x.svs` and `chromogranin_ihc_40x_region.svs`. PYTHON,
if given, is an interpreter that has hs2p[openslide], a tool that cuts the same tiles; it is left out otherwise.
"OpenSlide" is `--reader openslide`, which resamples and encodes like the direct reader; "openslide-python, Pillow"
is the same stage with patches read, resampled and encoded as scripts do it.
All in seconds of processor time, so that a busy machine matters less; the best of several rounds, in which all
take turns, everything opened anew. The CSV's first rows are ratios and their goals, the others their parts.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import openslide
import simplejpeg
import tifffile
from PIL import Image

from patch_extraction.config import HarvestConfig
from patch_extraction.counters.base import CLASSICAL, CellCounter, HaematoxylinCounter, choose_counter
from patch_extraction.harvesting.focus import focus
from patch_extraction.harvesting.slide_harvest import harvest_slide
from patch_extraction.harvesting.slide_list import find_entries
from patch_extraction.harvesting.slide_plan import SlidePlan
from patch_extraction.slide_store.slide_record import Record
from patch_extraction.slide_store.slide_tar import QUALITY, SlideTar, add_member, as_jpeg
from shared.samples.pyramidal_tiff import TiffLevel, write_pyramid
from shared.samples.specimen import section
from shared.weights.shipped import NUCLEI
from shared.wsi.resampling import resample
from shared.wsi.slide import Reader, Slide
from tests.benchmarks.measuring import in_turn, write

OUT = Path(__file__).with_suffix(".csv")
READING, STAGE = "chromogranin_ihc_40x_region.svs", "CD34_ihc_40x.svs"
SIDE, PATCHES, ROUNDS, WORKER_ROUNDS = 512, 100, 8, 3
COUNTERS = (NUCLEI, CLASSICAL[0])
READERS: tuple[Reader, ...] = ("openslide", "auto")
PLAIN = "openslide-python, Pillow"
PACKAGES = ("openslide-bin", "simplejpeg", "pillow", "cykooz-resizer")
COLUMNS = ("what", "path", "patches", "cpu_s", "per_cpu_s", "ratio", "goal", "note")
Row = dict[str, object]
# What hs2p is asked: the slide's own resolution, all defaults, tiles into a tar.
PEER = """
import sys, time
from pathlib import Path
from hs2p import SegmentationConfig, SlideSpec, TilingConfig, tile_slides
tiling = TilingConfig(backend="openslide", mask_backend="openslide", requested_spacing_um=float(sys.argv[3]),
    requested_tile_size_px=512, tolerance=0.05, overlap=0.0)
times = []
for number in range(3):
    start = time.process_time()
    spec = SlideSpec(sample_id="a", image_path=Path(sys.argv[1]))
    found = tile_slides([spec], tiling=tiling, segmentation=SegmentationConfig(method="hsv", downsample=64),
        output_dir=Path(sys.argv[2]) / str(number), num_workers=1, save_tiles=True)
    times.append(time.process_time() - start)
print(found[0].num_tiles, min(times))
"""
# A process that runs a command and says what it and all its descendants took, those that nobody else waited for as
# well (it adopts them): seconds, processor seconds, MB of the largest.
WATCH = """
import contextlib, ctypes, json, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, capture_output=True)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def main() -> None:
    """Measure everything, with scratch files in a folder of its own."""
    slides, peer = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            read_encode_tar(slides / READING, folder),
            peer_rows(slides / READING, folder, peer),
            whole_stage(slides / STAGE, folder),
            counters(slides / STAGE, folder),
            one_patch(slides / STAGE, folder),
            large_slide(folder),
            processes(slides / STAGE, folder),
        ]
    rows = [row for part in parts for row in part]
    for each in rows:
        each["packages"] = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    write(OUT, sorted(rows, key=lambda row: row["ratio"] == ""))


def row(what: str, path: str = "", **values: object) -> Row:
    """Return a row with every column; processor seconds of several patches give their rate."""
    filled = {**dict.fromkeys(COLUMNS, ""), "what": what, "path": path, **values}
    if filled["patches"] and filled["cpu_s"]:
        filled["per_cpu_s"] = round(filled["patches"] / filled["cpu_s"])
        filled["cpu_s"] = round(filled["cpu_s"], 3)
    return filled


def read_encode_tar(path: Path, folder: Path) -> list[Row]:
    """512 px squares of level 0 into a tar, beside a loop that only decodes and encodes; aligned and not."""
    with Slide(path) as slide:
        columns = slide.size[0] // SIDE - 1
    aligned = [(n % columns * SIDE, n // columns * SIDE) for n in range(PATCHES)]
    shifted = [(x + 100, y + 60) for x, y in aligned]

    def work(reader: Reader, corners: Sequence[tuple[int, int]]) -> Callable[[], None]:
        return lambda: write_patches(path, reader, corners, folder / "patches.tar")

    works = {
        "OpenSlide": work("openslide", aligned),
        "direct": work("auto", aligned),
        "decode and encode only": lambda: decode_and_encode(path, aligned),
        "OpenSlide, off the tiles": work("openslide", shifted),
        "direct, off the tiles": work("auto", shifted),
    }
    seconds = in_turn(works, ROUNDS, time.process_time)
    what = "read, encode, tar"
    ratios = [
        ("direct / OpenSlide", seconds["OpenSlide"] / seconds["direct"], 2.5),
        ("direct / decode and encode only", seconds["decode and encode only"] / seconds["direct"], 0.7),
        ("the same, off the tiles", seconds["OpenSlide, off the tiles"] / seconds["direct, off the tiles"], ""),
    ]
    return [row(what, name, ratio=round(ratio, 2), goal=goal) for name, ratio, goal in ratios] + [
        row(what, name, patches=PATCHES, cpu_s=each) for name, each in seconds.items()
    ]


def write_patches(path: Path, reader: Reader, corners: Sequence[tuple[int, int]], out: Path) -> None:
    """Do what a harvest does with a patch that it keeps, but for counting, resampling and sums of its px."""
    with Slide(path, reader=reader) as slide, tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for x, y in corners:
            patch_HW3 = slide.read_pixels(x, y, SIDE, SIDE, slide.mpp)
            add_member(tar, f"{x}_{y}.jpg", as_jpeg(patch_HW3))


def decode_and_encode(path: Path, corners: Sequence[tuple[int, int]]) -> None:
    """Do the least that a patch can cost: four tiles of 256 px decoded in place, and encoded."""
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page = tiff.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        patch_HW3 = np.empty((SIDE, SIDE, 3), np.uint8)
        for x, y in corners:
            for top in (0, 256):
                for left in (0, 256):
                    index = (y + top) // 256 * across + (x + left) // 256
                    stream = os.pread(file.fileno(), page.databytecounts[index], page.dataoffsets[index])
                    patch_HW3[top : top + 256, left : left + 256] = simplejpeg.decode_jpeg(stream)
            simplejpeg.encode_jpeg(patch_HW3, QUALITY, "RGB", "420")


def peer_rows(path: Path, folder: Path, python: str | None) -> list[Row]:
    """hs2p with OpenSlide: it finds tissue, reads, encodes and tars."""
    name = "hs2p (OpenSlide)"
    if python is None:
        return [row("tissue, read, encode, tar", name, note="left out: give a Python that has hs2p[openslide]")]
    with Slide(path) as slide:
        words = [python, "-c", PEER, path, folder / "peer", str(slide.mpp)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    tiles, seconds = done.stdout.split()[-2:]
    return [row("tissue, read, encode, tar", name, patches=int(tiles), cpu_s=float(seconds))]


def whole_stage(path: Path, folder: Path) -> list[Row]:
    """Tissue, screen, count, resample, encode, tar, pictures of one slide, every patch with enough cells kept."""
    return stage_rows(path, folder, f"whole stage, {path.name}", 2.5, max_patches=10**6)


def stage_rows(path: Path, folder: Path, what: str, goal: object, **settings: object) -> list[Row]:
    """Measure the whole stage on one slide, by both readers and by plain means."""
    records: dict[str, Record] = {}

    def work(name: str, reader: Reader) -> Callable[[], None]:
        def harvest() -> None:
            with plain_means(path) if name == PLAIN else contextlib.nullcontext():
                records[name] = harvest_one(path, folder, reader, **settings)

        return harvest

    works = {reader: work(reader, reader) for reader in READERS} | {PLAIN: work(PLAIN, "openslide")}
    seconds = in_turn(works, ROUNDS, time.process_time)
    assert records["auto"].sha256 == records["openslide"].sha256
    rows = [
        row(what, f"direct / {name}", ratio=round(seconds[other] / seconds["auto"], 2), goal=goal)
        for name, other in (("OpenSlide", "openslide"), (PLAIN, PLAIN))
    ]
    for name, each in seconds.items():
        record = records[name]
        note = (
            f"{1000 * each / record.candidates:.1f} ms a candidate, {1000 * each / record.kept:.1f} a kept patch"
        )
        rows.append(row(what, name, patches=record.kept, cpu_s=each, note=note))
    return rows


@contextlib.contextmanager
def plain_means(path: Path) -> Iterator[None]:
    """Within, openslide-python and Pillow read, resample and encode the patches of a slide, from level 0."""
    slide = openslide.OpenSlide(path)

    def read(plan: SlidePlan, x: int, y: int) -> np.ndarray:
        region = slide.read_region((x, y), 0, (plan.grid.side, plan.grid.side)).convert("RGB")
        return np.asarray(region.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    with (
        contextlib.closing(slide),
        mock.patch("patch_extraction.harvesting.slide_harvest.SlidePlan.read", read),
        mock.patch("patch_extraction.slide_store.slide_tar.as_jpeg", jpeg_by_pillow),
    ):
        yield


def jpeg_by_pillow(patch_HW3: np.ndarray) -> bytes:
    """Encode by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(patch_HW3).save(stream, format="JPEG", quality=QUALITY, subsampling="4:2:0")
    return stream.getvalue()


def counters(path: Path, folder: Path) -> list[Row]:
    """Measure the whole stage on one slide with the shipped detector and with the classical counter."""
    records: dict[str, Record] = {}

    def work(word: str) -> Callable[[], None]:
        counter = choose_counter(word)
        return lambda: records.update({word: harvest_one(path, folder, "auto", counter, max_patches=10**6)})

    seconds = in_turn({word: work(word) for word in COUNTERS}, WORKER_ROUNDS, time.process_time)
    detector, classical = (seconds[word] for word in COUNTERS)
    what = f"whole stage, {path.name}, counter"
    rows = [row(what, " / ".join(COUNTERS), ratio=round(detector / classical, 2), goal="at most 2.5")]
    return rows + [row(what, word, patches=records[word].kept, cpu_s=each) for word, each in seconds.items()]


def harvest_one(
    path: Path, folder: Path, reader: Reader, counter: CellCounter | None = None, **settings: object
) -> Record:
    """One slide by the stage's own function, with the classical counter unless told otherwise."""
    wsi_dir, out = folder / path.stem, folder / "shards"
    wsi_dir.mkdir(exist_ok=True)
    if not (wsi_dir / path.name).exists():
        (wsi_dir / path.name).symlink_to(path)
    shutil.rmtree(out, ignore_errors=True)
    config = HarvestConfig(wsi_dir=wsi_dir, out=out, reader=reader, **settings)
    counter = counter or HaematoxylinCounter()
    return harvest_slide(find_entries(config, counter)[0], config, counter)


def one_patch(path: Path, folder: Path) -> list[Row]:
    """Where the time of a patch goes, part by part, on the patches that the stage kept last."""
    tar = next((folder / "shards" / "slides").glob("*.tar"))
    mpp, side = 0.25, 487  # of CD34_ihc_40x.svs, 0.263 um/px: 128 um
    corners = [tuple(map(int, name[:-4].split("_")[-2:])) for name in names(tar)][:PATCHES]
    with Slide(path) as slide:
        regions = [np.asarray(slide.read(x, y, side, side, slide.mpp)) for x, y in corners]
    whole = (0.0, 0.0, float(side), float(side))
    patches = [resample(region, (SIDE, SIDE), whole) for region in regions]
    counter, detector = HaematoxylinCounter(), choose_counter(NUCLEI)

    def read(reader: Reader) -> Callable[[], None]:
        def work() -> None:
            with Slide(path, reader=reader) as slide:
                for x, y in corners:
                    slide.read(x, y, side, side, slide.mpp)

        return work

    def keep() -> None:
        with SlideTar(folder / "patches.tar") as out:
            for (x, y), patch in zip(corners, patches, strict=True):
                out.add(f"{x}_{y}", patch, {})

    works = {
        "read by OpenSlide": read("openslide"),
        "read directly": read("auto"),
        "resample 487 to 512 px": lambda: [resample(region, (SIDE, SIDE), whole) for region in regions],
        "the same by Pillow": lambda: [by_pillow(region) for region in regions],
        "count cells": lambda: [counter.find(patch, mpp) for patch in patches],
        "count cells by nuclei": lambda: [detector.find(patch, mpp) for patch in patches],
        "measure sharpness": lambda: [focus(patch, mpp) for patch in patches],
        "encode, tar, sums of px": keep,
    }
    seconds = in_turn(works, ROUNDS, time.process_time)
    return [row("part of a patch", name, patches=len(corners), cpu_s=each) for name, each in seconds.items()]


def by_pillow(region_HW3: np.ndarray) -> Image.Image:
    """Resample by Pillow."""
    return Image.fromarray(region_HW3).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def names(tar: Path) -> list[str]:
    """Return the pictures in a tar."""
    done = subprocess.run(["tar", "-tf", tar], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if name.endswith(".jpg")]


def large_slide(folder: Path) -> list[Row]:
    """Measure the whole stage where 500 patches are kept of thousands of places, as on most slides."""
    path = folder / "large.svs"
    write_large_slide(path)
    return stage_rows(path, folder, "whole stage, 100352 x 80384 px, 4096 places", "")


def processes(path: Path, folder: Path) -> list[Row]:
    """Measure the command as users type it: start-up, memory with a large slide, one worker and two."""
    rows = [row("start-up", "--help", note=f"{watched('--help')[1]:.2f} s of processor time")]
    large = ("--wsi-dir", folder / "large", "--out", folder / "large_shards")
    used = watched(*large, "--workers", "1", "--counter", CLASSICAL[0])
    rows.append(
        row("memory", "100352 x 80384 px, 1 worker", note=f"{used[2]:.0f} MB at most in a process, goal 1000")
    )
    copies = folder / "copies"
    copies.mkdir()
    for number in range(8):  # told apart by a byte after the end
        (copies / f"{number}.svs").write_bytes(path.read_bytes() + bytes([number]))
    runs = [(workers, folder / f"copies_{workers}") for workers in (1, 2)] * WORKER_ROUNDS
    taken = [(workers, harvested(copies, out, workers)) for workers, out in runs]
    walls = []
    for workers, out in runs[:2]:
        wall, cpu, most = min(used for count, used in taken if count == workers)
        packing, _, _ = watched("--wsi-dir", copies, "--out", out, "--pack", "--counter", CLASSICAL[0])
        kept = json.loads((out / "index.json").read_text())["samples"]
        note = f"wall {wall:.1f} s, then {packing:.1f} s to pack; {most:.0f} MB at most in a process"
        rows.append(row("eight slides", f"{workers} workers", patches=kept, cpu_s=cpu, note=note))
        walls.append(wall)
    return [*rows, row("eight slides", "2 workers / 1 worker, wall", ratio=round(walls[0] / walls[1], 2))]


def harvested(wsi_dir: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Measure what a harvest from the beginning takes, packing aside; see `watched`."""
    shutil.rmtree(out, ignore_errors=True)
    classical = ("--counter", CLASSICAL[0])
    return watched("--wsi-dir", wsi_dir, "--out", out, "--workers", workers, "--part", "1/1", *classical)


def watched(*words: object) -> tuple[float, float, float]:
    """Seconds, processor seconds and MB of the largest process of `python -m patch_extraction WORDS`."""
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "patch_extraction", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, cpu, most = json.loads(done.stdout)
    return wall, cpu, most


def write_large_slide(path: Path) -> None:
    """100352 x 80384 px of 0.25 um, of which an island of 32768 x 32768 px is the same tissue again and again."""
    specimen = section(5, 512.0, 512.0)
    levels = [
        large_level(specimen.render(0.25 * 4**n), 100352 // 4**n, 80384 // 4**n, 128 // 4**n) for n in range(4)
    ]
    write_pyramid(path, levels, "Aperio Image Library v12.0.0 \r\nlarge|AppMag = 40|MPP = 0.25")


def large_level(image_HW3: np.ndarray, width: int, height: int, island: int) -> TiffLevel:
    """Yield a level whose island, `island` tiles wide and high, repeats an image."""
    repeats = -(-256 // image_HW3.shape[0])
    image_HW3 = np.tile(image_HW3, (repeats, repeats, 1))
    count = image_HW3.shape[0] // 256
    tissue = {
        (y, x): simplejpeg.encode_jpeg(
            np.ascontiguousarray(image_HW3[y * 256 : (y + 1) * 256, x * 256 : (x + 1) * 256]), 80, "RGB", "420"
        )
        for y in range(count)
        for x in range(count)
    }
    glass = simplejpeg.encode_jpeg(np.full((256, 256, 3), 240, np.uint8), 80, "RGB", "420")

    def streams() -> Iterator[bytes]:
        for y in range(-(-height // 256)):
            for x in range(-(-width // 256)):
                yield tissue[y % count, x % count] if max(x, y) < island else glass

    return TiffLevel(width, height, 256, streams())


if __name__ == "__main__":
    main()
