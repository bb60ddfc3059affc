"""The page about a harvest: failures first, nothing fetched, names harmless, numbers right."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from patch_extraction.config import HarvestConfig
from patch_extraction.reports.histogram import summed
from patch_extraction.reports.html_report import write_report
from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, HARVESTED, NO_PATCH, Record

NASTY = "<script>alert('x')</script>&\"ü.svs"


class Page(HTMLParser):
    """Tags with their attributes, and all text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data}\n"


@pytest.fixture
def records() -> list[Record]:
    good = Record("a.svs", "a", "CD3", HARVESTED, kept=3, histogram=(0, 1, 4, 3), slide_mpp=0.25, candidates=9)
    return [
        good,
        replace(good, slide="b.svs", slide_id="b", biomarker="<i>Ki-67", kept=1, histogram=(2, 0, 0, 0, 1)),
        Record("c.svs", "c", "CD3", NO_PATCH, reason="no place holds 30 cells"),
        Record(NASTY, "d", "CD3", FAILED, reason=f"{NASTY} is not a slide"),
        Record("e.svs", "e", "CD3", DUPLICATE, reason="the same file as a.svs"),
    ]


def page(out: Path, records: list[Record]) -> Page:
    write_report(out, records, HarvestConfig(wsi_dir=Path("wsi & more"), out=out))
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_names_are_harmless_and_nothing_is_fetched(records, tmp_path):
    (tmp_path / "thumbnails").mkdir()
    for name in "ad":
        Image.new("RGB", (900, 400), "red").save(tmp_path / "thumbnails" / f"{name}.jpg")
    Image.new("RGB", (2000, 900)).save(tmp_path / "contact_sheet.png")
    made = page(tmp_path, records)
    assert not {tag for tag, _ in made.tags} & {"script", "i", "link", "iframe", "a", "object"}
    assert NASTY in made.text
    assert "<i>Ki-67" in made.text
    sources = [attributes["src"] for _, attributes in made.tags if "src" in attributes]
    assert len(sources) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", content)


def test_failures_come_first(records, tmp_path):
    text = page(tmp_path, records).text
    order = [
        text.index(word) for word in ("is not a slide", "no place holds 30", "the same file as", "all slides:")
    ]
    assert order == sorted(order)
    assert "4 patches" in text.replace("\n", " ")


def test_biomarkers_add_up(records, tmp_path):
    lines = page(tmp_path, records).text.split("Biomarkers\n")[1].splitlines()
    assert [line for line in lines if line][:12] == (
        ["biomarker", "slides", "patches", "<i>Ki-67", "1", "1", "CD3", "1", "3", "all", "2", "4"]
    )


def test_histograms_add_up():
    assert summed([(0, 1, 4, 3), (2, 0, 0, 0, 1)]) == [2, 1, 4, 3, 1]
    assert summed([[0] * 50 + [7], [1]]) == [1, *[0] * 29, 7]
    assert summed([]) == []


def test_bars_are_as_high_as_they_should_be(records, tmp_path):
    """Of all slides together: 2, 1, 4, 3, 1 places; those below 30 cells grey."""
    made = page(tmp_path, records)
    bars = [attributes for tag, attributes in made.tags if tag == "rect"][:5]
    heights = [float(bar["height"]) for bar in bars]
    assert [height / heights[2] * 4 for height in heights] == pytest.approx([2, 1, 4, 3, 1], abs=0.01)
    assert [bar["fill"] for bar in bars] == ["#b5b5b5"] * 3 + ["#0072B2"] * 2


def test_thousands_of_slides_make_no_thousands_of_pictures(tmp_path, records):
    (tmp_path / "thumbnails").mkdir()
    many = [replace(records[0], slide=f"{i}.svs", slide_id=str(i)) for i in range(150)]
    many += [replace(records[3], slide_id="150")]
    for i in range(151):
        Image.new("RGB", (8, 8)).save(tmp_path / "thumbnails" / f"{i}.jpg")
    made = page(tmp_path, many)
    captions = made.text.split("of 151 in")[1]
    assert captions.index(NASTY) < captions.index("0.svs")
    assert 40 <= sum(tag == "img" for tag, _ in made.tags) <= 60
    assert made.text.count(".svs") >= 151  # in the table all of them


def test_a_harvest_s_own_page(undisturbed):
    out, done = undisturbed
    made = Page((out / "report.html").read_text(encoding="utf-8"))
    assert f"{out / 'report.html'}" in done.stdout
    assert made.text.count("S.1 ü.a.svs") >= 4
    assert sum(tag == "svg" for tag, _ in made.tags) == 4  # all slides, and three biomarkers
    assert sum(tag == "img" for tag, _ in made.tags) == 4 + (out / "rejected.png").exists()


def test_a_damaged_thumbnail_costs_no_report(records, tmp_path):
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "a.jpg").write_bytes(b"")
    assert "its picture is damaged" in page(tmp_path, records).text
