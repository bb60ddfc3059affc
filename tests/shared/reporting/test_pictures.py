"""Marks lie where the coordinates say, sheets hold everything they are given."""

import numpy as np
from PIL import Image

from shared.reporting.pictures import contact_sheet, draw_lines, draw_points, drawable


def test_a_mark_is_centred_on_its_point() -> None:
    image = Image.new("RGB", (61, 61), "white")
    # (30.5, 20.5) is the centre of the pixel in column 30, row 20.
    marked = np.asarray(draw_points(image, np.array([[30.5, 20.5]]), [0], radius=5))
    rows, columns = np.nonzero((marked != 255).any(-1))
    assert (rows.min() + rows.max()) / 2 == 20
    assert (columns.min() + columns.max()) / 2 == 30
    assert tuple(marked[20, 30]) == (255, 255, 255)
    assert np.asarray(image).min() == 255


def test_lines_join_start_and_end() -> None:
    drawn = np.asarray(
        draw_lines(Image.new("RGB", (20, 20)), np.array([[2.5, 3.5]]), np.array([[12.5, 3.5]]), "#FFFFFF")
    )
    rows, columns = np.nonzero(drawn[..., 0])
    assert set(rows) == {3}
    assert (columns.min(), columns.max()) == (2, 12)


def test_a_sheet_shows_every_image() -> None:
    colours = ["red", "green", "blue", "orange", "purple"]
    images = [Image.new("RGB", (30, 20), colour) for colour in colours]
    sheet = np.asarray(contact_sheet(images, 2, captions=colours, side=60, title="five", legend=["a", "b"]))
    for image in images:
        assert (sheet == np.asarray(image)[0, 0]).all(-1).sum() > 60 * 35


def test_words_are_drawn_in_signs_that_the_font_has() -> None:
    """A sign that it lacks would be an empty box, a line break an error."""
    assert drawable("Schnitt 1 – ä.svs") == "Schnitt 1 ? a.svs"
    assert drawable("Ki-67/a\nb.svs") == "Ki-67/a b.svs"
    image = Image.new("RGB", (40, 40), "red")
    sheets = [contact_sheet([image], 1, [caption], title=caption) for caption in ("染 ü\n1", "? u 1")]
    assert sheets[0].tobytes() == sheets[1].tobytes()
