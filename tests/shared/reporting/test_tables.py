"""Tables for the terminal."""

from shared.reporting.tables import table


def test_words_stand_left_and_numbers_right():
    assert table(("slide", "patches"), [("a", 5), ("longer", 1200), ("c", "")]) == (
        "slide   patches\na             5\nlonger     1200\nc"
    )
