"""Shards whose patches say what they are: two biomarkers, two slides each, as a harvest writes them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.ssl_pretrain.conftest import jpeg, tissue, write_samples

SLIDES = {"Ki-67/a.svs": "Ki-67", "Ki-67/b.svs": "Ki-67", "PD-L1/c.svs": "PD-L1", "PD-L1/d.svs": "PD-L1"}


def painted(number: int) -> Image.Image:
    """Tissue whose tint is its slide's (number modulo 4)."""
    pixels = np.asarray(tissue(number), np.int16)
    tint = np.array([(0, 0, 0), (-60, 0, 0), (0, -60, 0), (-30, -30, 0)][number % len(SLIDES)])
    return Image.fromarray((pixels + tint).clip(0, 255).astype(np.uint8))


def write_labelled(folder: Path, counts: list[int], json_first: bool = False) -> Path:
    """Patch n comes from slide n modulo 4."""

    def sample(n: int) -> dict[str, bytes]:
        slide = list(SLIDES)[n % len(SLIDES)]
        facts = {"slide": slide, "biomarker": SLIDES[slide], "x": n, "mpp": 0.25}
        parts = {"jpg": jpeg(painted(n)), "json": json.dumps(facts).encode(), "mask.jpg": b"none"}
        return dict(reversed(parts.items())) if json_first else parts

    biomarkers = {name: {"slides": 2, "patches": sum(counts) // 2} for name in ("Ki-67", "PD-L1")}
    return write_samples(folder, counts, sample, slides=4, biomarkers=biomarkers, settings={})
