"""Pictures for people: points on images, labelled contact sheets. PIL only, no plotting library."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Bright hues that stand out on pink, blue and brown tissue; every mark also gets a dark rim.
COLOURS = ["#00E5FF", "#FFE600", "#39FF14", "#FF7A00", "#FF3DF2", "#FFFFFF", "#FF4D4D", "#9D7BFF"]
RIM = "#101010"
CAPTION_HEIGHT = 18


def draw_points(
    image: Image.Image,
    points_N2: np.ndarray,
    labels_N: Sequence[int] | np.ndarray | None = None,
    radius: float = 4.0,
    filled: bool = False,
) -> Image.Image:
    """Return a copy of `image` with a circle of `radius` px around every point (x, y in px, corner origin)."""
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    labels = np.zeros(len(points_N2), int) if labels_N is None else np.asarray(labels_N)
    for (x, y), label in zip(points_N2, labels, strict=True):
        # PIL addresses pixels by index: the centre of the first pixel, (0.5, 0.5) here, is its (0, 0).
        box = (x - 0.5 - radius, y - 0.5 - radius, x - 0.5 + radius, y - 0.5 + radius)
        colour = COLOURS[int(label) % len(COLOURS)]
        rim = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
        draw.ellipse(rim, outline=RIM, width=4 if not filled else 1)
        draw.ellipse(box, outline=colour, fill=colour if filled else None, width=2)
    return canvas


def draw_lines(image: Image.Image, starts_N2: np.ndarray, ends_N2: np.ndarray, colour: str) -> Image.Image:
    """Return a copy of `image` with a line from every start to its end (px, corner origin)."""
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for start, end in zip(starts_N2 - 0.5, ends_N2 - 0.5, strict=True):
        draw.line([tuple(start), tuple(end)], fill=colour, width=1)
    return canvas


def drawable(text: str) -> str:
    """Text as Pillow's own font can draw it, on one line: letters without accents, `?` for other signs."""
    letters = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return "".join(sign if sign.isprintable() else " " for sign in letters).encode("ascii", "replace").decode()


def contact_sheet(  # noqa: PLR0913
    images: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] = (),
    side: int | tuple[int, int] = 256,
    title: str = "",
    legend: Sequence[str] = (),
) -> Image.Image:
    """Images in rows of `columns`, each fitted into `side` px (or width and height), captions below, title on top.

    `legend` names the labels 0, 1, ... of `draw_points` in their colours, after the title.
    """
    captions = list(captions) + [""] * (len(images) - len(captions))
    width, height = (side, side) if isinstance(side, int) else side
    row_height = height + (CAPTION_HEIGHT if any(captions) else 0) + 4
    top = CAPTION_HEIGHT + 6 if title or legend else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 4), top + max(rows, 1) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    title = drawable(title)
    draw.text((4, 3), title, fill="black", font=font)
    _draw_legend(draw, list(map(drawable, legend)), 20 + draw.textlength(title, font=font), font)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = (index % columns) * (width + 4), top + (index // columns) * row_height
        sheet.paste(_fit(image, width, height), (x, y))
        draw.text((x + 3, y + height + 1), drawable(caption), fill="black", font=font)
    return sheet


def _draw_legend(draw: ImageDraw.ImageDraw, names: Sequence[str], x: float, font: Any) -> None:
    for label, name in enumerate(names):
        colour = COLOURS[label % len(COLOURS)]
        draw.ellipse((x, 5, x + 11, 16), fill=colour, outline=RIM, width=1)
        draw.text((x + 16, 3), name, fill="black", font=font)
        x += 34 + draw.textlength(name, font=font)


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
