"""`python -m tests.benchmarks.learning_curves`: draw the trials in learning_trials.csv as learning_curves.png.

Three panels over the number of training crops: macro F1, macro AP and duplicates on validation tiles (CoNSeP's
unless the trial names other data), in percent. Trials that were validated once are left out.
"""

import csv
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TABLE = Path(__file__).with_name("learning_trials.csv")
PANELS = {"validation_f1": (45, 75), "validation_ap": (35, 70), "duplicates": (0, 25)}
SIDE, MARGIN, LINE = 380, 50, 20


def main() -> None:
    trials: dict[str, list[dict[str, str]]] = defaultdict(list)
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            trials[row["trial"]].append(row)
    trials = {name: rows for name, rows in trials.items() if len(rows) > 1}
    colours = [f"hsl({360 * number // len(trials)}, 80%, 40%)" for number in range(len(trials))]
    most = max(int(row["crops"]) for rows in trials.values() for row in rows)
    height = SIDE + 2 * MARGIN + LINE * len(trials)
    picture = Image.new("RGB", (len(PANELS) * (SIDE + MARGIN) + MARGIN, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, (column, (low, high)) in enumerate(PANELS.items()):
        left = MARGIN + number * (SIDE + MARGIN)
        draw.text((left, MARGIN - 24), f"{column.replace('_', ' ')}, %", fill="black", font=font)
        for value in range(low, high + 1, 5):
            y = MARGIN + SIDE * (high - value) / (high - low)
            draw.line((left, y, left + SIDE, y), fill="#DDDDDD")
            draw.text((left - 22, y - 8), str(value), fill="black", font=font)
        draw.text((left + SIDE - 110, MARGIN + SIDE + 6), f"{most:,} crops", fill="black", font=font)
        for colour, rows in zip(colours, trials.values(), strict=True):
            measured = [(int(row["crops"]), max(low, float(row[column]))) for row in rows if row[column]]
            places = [
                (left + SIDE * crops / most, MARGIN + SIDE * (high - value) / (high - low))
                for crops, value in measured
            ]
            draw.line(places, fill=colour, width=2)
    for number, (colour, name) in enumerate(zip(colours, trials, strict=True)):
        y = SIDE + 2 * MARGIN + LINE * number
        draw.line((MARGIN, y, MARGIN + 30, y), fill=colour, width=3)
        draw.text((MARGIN + 40, y - 8), name, fill="black", font=font)
    picture.save(TABLE.with_name("learning_curves.png"))


if __name__ == "__main__":
    main()
