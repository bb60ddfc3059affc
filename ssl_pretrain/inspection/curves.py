"""Curves of several runs in one picture, drawn with PIL."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]
# Dark enough for a white ground, and apart for the colour-blind (Okabe & Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 28, 26
# Points a curve is drawn with; of more, neighbours are averaged.
MOST_POINTS = 300


def curve_sheet(runs: Mapping[str, Mapping[str, Points]], titles: Mapping[str, str]) -> Image.Image | None:
    """One chart for each of `titles` that a run has logged, runs in colours; None if there is nothing to draw.

    Args:
        runs: For each run the points (images seen, value) of its numbers.
        titles: What a number is called in its chart, by its name in the runs.
    """
    colours = {run: COLOURS[number % len(COLOURS)] for number, run in enumerate(runs)}
    charts = []
    for name, title in titles.items():
        lines = {run: logged[name] for run, logged in runs.items() if logged.get(name)}
        if lines:
            charts.append(chart(title, lines, colours))
    if not charts:
        return None
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    sheet = Image.new("RGB", (columns * WIDTH, 20 * len(runs) + 10 + rows * HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (run, colour) in enumerate(colours.items()):
        draw.line((10, 15 + 20 * number, 40, 15 + 20 * number), fill=colour, width=3)
        draw.text((48, 7 + 20 * number), run, fill="black", font=font)
    for number, image in enumerate(charts):
        place = (number % columns * WIDTH, 20 * len(runs) + 10 + number // columns * HEIGHT)
        sheet.paste(image, place)
    return sheet


def chart(title: str, lines: Mapping[str, Points], colours: Mapping[str, str]) -> Image.Image:
    """Lines over images seen; the axes begin and end at the least and the greatest values."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    drawn = {name: _thinned(points) for name, points in lines.items()}
    every_N2 = np.concatenate(list(drawn.values()))
    low, high = every_N2.min(axis=0), every_N2.max(axis=0)
    draw.text((LEFT, 6), title, fill="black", font=ImageFont.load_default(14))
    draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline="#A0A0A0")
    ticks = _told_apart([high[1], (low[1] + high[1]) / 2, low[1]])
    for tick, y in zip(ticks, (TOP, (TOP + HEIGHT - BOTTOM) / 2, HEIGHT - BOTTOM), strict=True):
        draw.text((LEFT - 6, y), tick, fill="black", font=font, anchor="rm")
    draw.text((LEFT, HEIGHT - BOTTOM + 5), _short(low[0]), fill="black", font=font, anchor="la")
    end = f"{_short(high[0])} images"
    draw.text((WIDTH - RIGHT, HEIGHT - BOTTOM + 5), end, fill="black", font=font, anchor="ra")
    for name, points_N2 in drawn.items():
        _draw_line(draw, points_N2, low, high, colours[name])
    return image


def _draw_line(
    draw: ImageDraw.ImageDraw, points_N2: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str
) -> None:
    share_N2 = (points_N2 - low) / np.maximum(high - low, 1e-12)
    x_N = LEFT + share_N2[:, 0] * (WIDTH - RIGHT - LEFT)
    y_N = HEIGHT - BOTTOM - share_N2[:, 1] * (HEIGHT - BOTTOM - TOP)
    places = [(float(x), float(y)) for x, y in zip(x_N, y_N, strict=True)]
    draw.line(places, fill=colour, width=2)
    if len(places) < 20:  # few looks are seen better as dots
        for x, y in places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _thinned(points: Points) -> np.ndarray:
    """Points (N, 2), neighbours averaged where they are many."""
    points_N2 = np.asarray(points, float)
    if len(points_N2) <= MOST_POINTS:
        return points_N2
    return np.stack([part_N2.mean(axis=0) for part_N2 in np.array_split(points_N2, MOST_POINTS)])


def _told_apart(values: Sequence[float]) -> list[str]:
    """Numbers with as many digits as tell them apart: three at least, six at most."""
    words = [[f"{value:.{digits}g}" for value in values] for digits in range(3, 7)]
    return next((each for each in words if len(set(each)) == len(each)), words[-1])


def _short(count: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"
