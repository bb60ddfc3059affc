"""Picture of precision over recall, with the operating point on every curve."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from finetune.datasets.description import ANY_CELL
from finetune.scoring.metrics import Score, Scores
from finetune.scoring.operating_point import Curve
from shared.reporting.pictures import drawable

SIDE, MARGIN, LEGEND = 560, 56, 240
# Dark on white; the last is that of detection regardless of class.
COLOURS = ("#0077B6", "#D1495B", "#2A9D3A", "#8E44AD", "#E67E22", "#00838F", "#6D4C41", "#AD1457")
DETECTION_COLOUR = "#101010"


def precision_recall_picture(curves: Sequence[Curve], scores: Scores, title: str) -> Image.Image:
    """Draw the curves of all classes and of detection; a dot marks the precision and recall of `scores`.

    Args:
        curves: Of the classes and, last, of detection regardless of class.
        scores: Scores at the operating point.
        title: A line above.
    """
    image = Image.new("RGB", (SIDE + 2 * MARGIN + LEGEND, SIDE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    _draw_axes(draw, font)
    draw.text((MARGIN, 16), drawable(title), fill="black", font=font)
    rows = [*scores.classes.items(), (ANY_CELL, scores.detection)]
    for number, ((name, score), curve) in enumerate(zip(rows, curves, strict=True)):
        colour = COLOURS[number % len(COLOURS)] if number < len(scores.classes) else DETECTION_COLOUR
        _draw_curve(draw, curve, score, colour)
        y = MARGIN + 20 * number
        draw.line((SIDE + MARGIN + 16, y + 8, SIDE + MARGIN + 40, y + 8), fill=colour, width=3)
        text = f"{name}: F1 {100 * score.f1:.1f}"
        draw.text((SIDE + MARGIN + 46, y), drawable(text), fill="black", font=font)
    return image


def _draw_axes(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    for step in range(0, 11, 2):
        x, y = _place(step / 10, step / 10)
        draw.line((x, MARGIN, x, MARGIN + SIDE), fill="#DDDDDD")
        draw.line((MARGIN, y, MARGIN + SIDE, y), fill="#DDDDDD")
        draw.text((x - 8, MARGIN + SIDE + 6), f"{step / 10:g}", fill="black", font=font)
        draw.text((MARGIN - 28, y - 8), f"{step / 10:g}", fill="black", font=font)
    draw.rectangle((MARGIN, MARGIN, MARGIN + SIDE, MARGIN + SIDE), outline="black")
    draw.text((MARGIN + SIDE / 2 - 20, MARGIN + SIDE + 26), "recall", fill="black", font=font)
    draw.text((4, MARGIN - 20), "precision", fill="black", font=font)


def _draw_curve(draw: ImageDraw.ImageDraw, curve: Curve, score: Score, colour: str) -> None:
    if not curve.annotated:
        return
    found = np.flatnonzero(curve.recall_T > 0)  # without predictions precision has no value
    points = [_place(curve.recall_T[index], curve.precision_T[index]) for index in found]
    draw.line(points, fill=colour, width=2)
    x, y = _place(score.recall, score.precision)
    draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour, outline="black", width=1)


def _place(recall: float, precision: float) -> tuple[float, float]:
    return MARGIN + recall * SIDE, MARGIN + (1 - precision) * SIDE
