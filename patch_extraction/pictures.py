"""What a harvest looked at and what it kept, for people."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

from patch_extraction.cell_counters import CellCounter
from patch_extraction.config import Source
from patch_extraction.slide_tar import members, read_at
from shared.atomic import atomic_path
from shared.pictures import contact_sheet, draw_points
from shared.slides import Slide
from shared.tissue import Tissue

THUMBNAILS = "thumbnails"
LONG_SIDE = 1200  # px of a thumbnail, at least
OUTLINE = (0, 0, 0)
# Patches are framed by how many cells they hold: below which count, in which colour (Okabe & Ito's palette).
STEPS = ((60, "#0072B2"), (120, "#009E73"), (200, "#E69F00"), (math.inf, "#D55E00"))
LEGEND_HEIGHT = 24
NUCLEUS_UM = 4.0  # radius of the circles around counted cells


def save_thumbnail(
    out: Path,
    source: Source,
    slide: Slide,
    tissue: Tissue,
    side: int,
    corners: Sequence[tuple[int, int]],
    cells: Sequence[int],
) -> None:
    """Write `thumbnails/SLIDE_ID.jpg`: the slide, its tissue outlined, the kept patches framed."""
    mpp, picture = _overview(slide, tissue)
    pixels = np.array(picture)
    right, bottom = np.minimum(np.array(picture.size) * mpp / tissue.mpp, tissue.overview.size)
    box = (0, 0, float(right), float(bottom))
    mask = np.asarray(Image.fromarray(tissue.mask).resize(picture.size, Image.Resampling.NEAREST, box))
    pixels[binary_dilation(mask ^ binary_erosion(mask))] = OUTLINE
    framed = Image.fromarray(pixels)
    _frame(framed, slide.mpp / mpp, side, corners, cells)
    title = f"{source.name}   {len(cells)} patches kept; frames by cells:"
    with atomic_path(out / THUMBNAILS / f"{source.slide_id}.jpg") as temporary:
        _with_legend(framed, title).save(temporary, format="JPEG", quality=88)


def sheet_of_patches(shard: Path, counter: CellCounter, count: int = 40, columns: int = 8) -> Image.Image:
    """The first patches of a shard with their counted cells marked; below each its slide and count."""
    images, captions = [], []
    for image, fields in first_samples(shard, count):
        points_N2 = counter.find(np.asarray(image), fields["mpp"])
        images.append(draw_points(image, points_N2, radius=NUCLEUS_UM / fields["mpp"]))
        captions.append(f"{fields['cells']} cells  {Path(fields['slide']).name}"[:38])
    title = f"{len(images)} patches as stored, chosen at random; circles: cells that were counted"
    return contact_sheet(images, columns, captions, title=title)


def first_samples(shard: Path, count: int) -> list[tuple[Image.Image, dict[str, Any]]]:
    """The first `count` patches of a shard with what their JSON says."""
    with shard.open("rb") as file:
        contents = [read_at(file, span) for _, span in members(file, 2 * count)]
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents[0::2]]
    return list(zip(images, map(json.loads, contents[1::2]), strict=True))


def _overview(slide: Slide, tissue: Tissue) -> tuple[float, Image.Image]:
    """The slide and its um/px: the picture behind the mask, or a larger one where that is small."""
    if max(tissue.overview.size) >= LONG_SIDE:
        return tissue.mpp, tissue.overview
    mpp = max(slide.mpp, max(slide.size) * slide.mpp / LONG_SIDE)
    return mpp, slide.overview(mpp)


def _frame(
    picture: Image.Image, scale: float, side: int, corners: Sequence[tuple[int, int]], cells: Sequence[int]
) -> None:
    draw = ImageDraw.Draw(picture)
    for (x, y), count in zip(corners, cells, strict=True):
        colour = next(colour for limit, colour in STEPS if count < limit)
        box = (x * scale, y * scale, (x + side) * scale - 1, (y + side) * scale - 1)
        draw.rectangle(box, outline=colour, width=2 if side * scale > 12 else 1)


def _with_legend(picture: Image.Image, title: str) -> Image.Image:
    """The picture under a line of text and the colours' meaning."""
    font = ImageFont.load_default(14)
    sheet = Image.new("RGB", (max(picture.width, 700), picture.height + LEGEND_HEIGHT), "white")
    sheet.paste(picture, (0, LEGEND_HEIGHT))
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 3), title, fill="black", font=font)
    x = 12 + draw.textlength(title, font=font)
    for limit, colour in STEPS:
        text = f"< {limit}" if limit < math.inf else "more"
        draw.rectangle((x, 5, x + 14, 19), fill=colour, outline="black")
        draw.text((x + 18, 3), text, fill="black", font=font)
        x += 70
    return sheet
