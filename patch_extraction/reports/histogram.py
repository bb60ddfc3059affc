"""Histograms of cells per patch as SVG, drawn without a plotting library."""

import itertools
from collections.abc import Sequence

from patch_extraction.slide_store.slide_record import BIN

WIDTH, HEIGHT = 360, 190  # px of a drawing
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 24, 34  # px around the bars
MOST_CELLS = 300  # what holds more goes into the last bar
LEFT_OUT, KEPT, LINE = "#b5b5b5", "#0072B2", "#a40000"


def bars(histograms: Sequence[Sequence[int]], min_cells: int, title: str) -> str:
    """The sum of the histograms, with a line at the threshold; empty if nothing was counted.

    Args:
        histograms: Places by BIN cells, one a slide.
        min_cells: The threshold.
        title: Fit for HTML.
    """
    counts = summed(histograms)
    if not sum(counts):
        return ""
    step = (WIDTH - LEFT - RIGHT) / len(counts)
    scale = (HEIGHT - TOP - BOTTOM) / max(counts)
    base = HEIGHT - BOTTOM
    drawn = [
        f'<rect x="{LEFT + i * step:.1f}" y="{base - count * scale:.1f}" width="{max(step - 1, 1):.1f}" '
        f'height="{count * scale:.1f}" fill="{KEPT if (i + 1) * BIN > min_cells else LEFT_OUT}"/>'
        for i, count in enumerate(counts)
    ]
    x = LEFT + min(min_cells / BIN, len(counts)) * step
    drawn.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}" stroke="{LINE}" stroke-dasharray="3 2"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-size="11" '
        f'font-family="sans-serif"><text x="{LEFT}" y="14" font-size="13">{title}: {sum(counts):,} places</text>'
        f"{''.join(drawn)}{_axes(len(counts), max(counts), step)}</svg>"
    )


def summed(histograms: Sequence[Sequence[int]]) -> list[int]:
    """Bar by bar, the last bar taking all that is beyond MOST_CELLS."""
    counts = [sum(column) for column in itertools.zip_longest(*histograms, fillvalue=0)]
    most = MOST_CELLS // BIN
    return counts if len(counts) <= most else [*counts[:most], sum(counts[most:])]


def _axes(columns: int, highest: int, step: float) -> str:
    base = HEIGHT - BOTTOM
    every = next(gap for gap in (1, 2, 5, 10) if columns / gap <= 8 or gap == 10)
    ticks = [
        f'<text x="{LEFT + i * step:.1f}" y="{base + 13}" text-anchor="middle">{i * BIN}</text>'
        for i in range(0, columns + 1, every)
    ]
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="#444"/>{"".join(ticks)}'
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end">{highest:,}</text>'
        f'<text x="{LEFT - 5}" y="{base}" text-anchor="end">0</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">cells in a patch</text>'
    )
