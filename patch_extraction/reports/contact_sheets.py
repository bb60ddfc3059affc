"""Pictures of a harvest: thumbnails of slides, contact sheets of patches."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from patch_extraction.config import SlideEntry
from patch_extraction.slide_store.file_names import (
    CONTACT_SHEET,
    REJECTED_SHEET,
    near_misses_path,
    thumbnail_path,
)
from shared.errors import UserError
from shared.files import atomic_path
from shared.reporting.pictures import contact_sheet, draw_points, drawable
from shared.shards.format import shard_name
from shared.shards.tar_reader import read_with_metadata
from shared.wsi.slide import Slide
from shared.wsi.tissue import Tissue

KEPT_SHOWN, REJECTED_SHOWN, COLUMNS = 40, 16, 8
MIN_LONG_SIDE = 1200  # px of a thumbnail
OUTLINE = (0, 0, 0)
# Colours of frames by the number of cells: upper limits (Okabe & Ito's palette).
COLOURS = ((60, "#0072B2"), (120, "#009E73"), (200, "#E69F00"), (math.inf, "#D55E00"))
LEGEND_HEIGHT = 24
NUCLEUS_UM = 4.0  # radius of the circles around counted cells


class KeptPatches(NamedTuple):
    """Patches kept of a slide, in px of level 0."""

    side: int
    corners: Sequence[tuple[int, int]]
    cells: Sequence[int]


def save_thumbnail(out: Path, entry: SlideEntry, slide: Slide, tissue: Tissue, kept: KeptPatches) -> None:
    """Write `thumbnails/SLIDE_ID.jpg`: the slide with outlined tissue and framed patches."""
    mpp, picture = _overview(slide, tissue)
    pixels = np.array(picture)
    right, bottom = np.minimum(np.array(picture.size) * mpp / tissue.mpp, tissue.overview.size)
    box = (0, 0, float(right), float(bottom))
    mask = np.asarray(Image.fromarray(tissue.mask).resize(picture.size, Image.Resampling.NEAREST, box))
    pixels[_outline(mask)] = OUTLINE
    framed = Image.fromarray(pixels)
    _frame(framed, slide.mpp / mpp, kept)
    title = drawable(f"{entry.name}   {len(kept.cells)} patches kept; frames by cells:")
    with atomic_path(thumbnail_path(out, entry.slide_id)) as temporary:
        _with_legend(framed, title).save(temporary, format="JPEG", quality=88)


def save_contact_sheets(out: Path, slide_ids: Sequence[str]) -> None:
    """Write contact sheets of some kept patches and of some near misses, with counted cells marked."""
    kept = first_samples(out / shard_name(0), KEPT_SHOWN)  # a random sample, as shards are shuffled
    title = f"{len(kept)} patches as stored, chosen at random; circles: counted cells"
    _save(out / CONTACT_SHEET, sheet_of_patches(kept, title))
    there = [path for path in (near_misses_path(out, slide_id) for slide_id in slide_ids) if path.exists()]
    chosen = there[:: max(1, len(there) // REJECTED_SHOWN)][:REJECTED_SHOWN]
    each = -(-REJECTED_SHOWN // max(1, len(chosen)))
    rejected = [sample for path in chosen for sample in _intact_samples(path, each)][:REJECTED_SHOWN]
    (out / REJECTED_SHEET).unlink(missing_ok=True)
    if rejected:
        title = f"{len(rejected)} patches left out, slightly too empty or out of focus; circles: counted cells"
        _save(out / REJECTED_SHEET, sheet_of_patches(rejected, title))


def sheet_of_patches(samples: Sequence[tuple[Image.Image, dict[str, Any]]], title: str) -> Image.Image:
    """Draw patches with counted cells marked; captions give count, sharpness and slide."""
    images, captions = [], []
    for image, fields in samples:
        points_N2 = np.array(fields["points"]).reshape(-1, 2)
        images.append(draw_points(image, points_N2, radius=NUCLEUS_UM / fields["mpp"]))
        captions.append(f"{fields['cells']} cells, focus {fields['focus']:.2f}  {Path(fields['slide']).name}"[:38])
    return contact_sheet(images, COLUMNS, captions, title=title)


def first_samples(shard: Path, count: int) -> list[tuple[Image.Image, dict[str, Any]]]:
    """Read the first `count` patches of a shard with their JSON."""
    return [
        (Image.open(io.BytesIO(image.content)).convert("RGB"), metadata)
        for image, metadata in read_with_metadata(shard, count)
    ]


def _intact_samples(shard: Path, count: int) -> list[tuple[Image.Image, dict[str, Any]]]:
    """Read patches of an unchecked tar; none if it is damaged, as they only serve a picture."""
    try:
        return first_samples(shard, count)
    except (OSError, ValueError, UserError):
        return []


def _save(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=1)  # four times as fast, a tenth larger


def _overview(slide: Slide, tissue: Tissue) -> tuple[float, Image.Image]:
    """Return um/px and image of a slide: the overview behind the mask, or a larger one if that is small."""
    if max(tissue.overview.size) >= MIN_LONG_SIDE:
        return tissue.mpp, tissue.overview
    mpp = max(slide.mpp, max(slide.size) * slide.mpp / MIN_LONG_SIDE)
    return mpp, slide.overview(mpp)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the px on both sides of a mask's edge, and the mask's px along the border of the image."""
    mask = np.pad(mask, 1)
    edge = np.zeros_like(mask)
    for one, other, differ in (
        (edge[1:], edge[:-1], mask[1:] != mask[:-1]),
        (edge[:, 1:], edge[:, :-1], mask[:, 1:] != mask[:, :-1]),
    ):
        one |= differ
        other |= differ
    return edge[1:-1, 1:-1]


def _frame(picture: Image.Image, scale: float, kept: KeptPatches) -> None:
    draw, side = ImageDraw.Draw(picture), kept.side * scale
    for (x, y), count in zip(kept.corners, kept.cells, strict=True):
        colour = next(colour for limit, colour in COLOURS if count < limit)
        box = (x * scale, y * scale, x * scale + side - 1, y * scale + side - 1)
        draw.rectangle(box, outline=colour, width=2 if side > 12 else 1)


def _with_legend(picture: Image.Image, title: str) -> Image.Image:
    """Add a title and the legend of the colours above an image."""
    font = ImageFont.load_default(14)
    sheet = Image.new("RGB", (max(picture.width, 700), picture.height + LEGEND_HEIGHT), "white")
    sheet.paste(picture, (0, LEGEND_HEIGHT))
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 3), title, fill="black", font=font)
    x = 12 + draw.textlength(title, font=font)
    for limit, colour in COLOURS:
        text = f"< {limit}" if limit < math.inf else "more"
        draw.rectangle((x, 5, x + 14, 19), fill=colour, outline="black")
        draw.text((x + 18, 3), text, fill="black", font=font)
        x += 70
    return sheet
