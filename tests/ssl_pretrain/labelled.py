"""Shards whose patches say what they are: two biomarkers, two slides each, as a harvest writes them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from tests.ssl_pretrain.conftest import jpeg, tissue

SLIDES = {"Ki-67/a.svs": "Ki-67", "Ki-67/b.svs": "Ki-67", "PD-L1/c.svs": "PD-L1", "PD-L1/d.svs": "PD-L1"}


def painted(number: int) -> Image.Image:
    """Tissue whose tint is its slide's (number modulo 4)."""
    pixels = np.asarray(tissue(number), np.int16)
    tint = np.array([(0, 0, 0), (-60, 0, 0), (0, -60, 0), (-30, -30, 0)][number % len(SLIDES)])
    return Image.fromarray((pixels + tint).clip(0, 255).astype(np.uint8))


def write_labelled(folder: Path, counts: list[int], json_first: bool = False) -> Path:
    """Patch n comes from slide n modulo 4."""
    folder.mkdir(parents=True)
    entries, number = [], 0
    for index, count in enumerate(counts):
        path = folder / f"shard-{index:06d}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for _ in range(count):
                slide = list(SLIDES)[number % len(SLIDES)]
                facts = {"slide": slide, "biomarker": SLIDES[slide], "x": number, "mpp": 0.25}
                parts = {"jpg": jpeg(painted(number)), "json": json.dumps(facts).encode(), "mask.jpg": b"none"}
                if json_first:
                    parts = dict(reversed(parts.items()))
                writer.write({"__key__": f"patch_{number}", **parts})
                number += 1
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"name": path.name, "samples": count, "sha256": digest})
    biomarkers = {name: {"slides": 2, "patches": number // 2} for name in ("Ki-67", "PD-L1")}
    content = {"shards": entries, "samples": number, "slides": 4, "biomarkers": biomarkers, "settings": {}}
    content |= {"mean": [0.7, 0.6, 0.65], "std": [0.2, 0.21, 0.19]}
    (folder / "index.json").write_text(json.dumps(content))
    return folder
