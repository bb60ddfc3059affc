"""A share of the slides for each of several tasks."""

import pytest

from shared.errors import UserError
from shared.jobs.partition import Part


def test_every_slide_belongs_to_one_part():
    slides = list(range(10))
    shares = [Part(number, 4).share(slides) for number in range(1, 5)]
    assert sorted(slide for share in shares for slide in share) == slides and {len(share) for share in shares} == {
        2,
        3,
    }
    assert [Part(3, 3).share(slides[:2]), Part(1, 1).share(slides)] == [[], slides]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "a/b", "1/2/3", "", "1.5/2"])
def test_what_is_no_part_is_refused(text: str):
    with pytest.raises(UserError, match=r"--part .* is not a part; give .* as 3/16"):
        Part.of_text(text)
