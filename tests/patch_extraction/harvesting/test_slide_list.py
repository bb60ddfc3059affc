"""Which slides: a CSV of them with what it overrides, wrong CSVs, and files that are there twice."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.counters.base import HaematoxylinCounter
from patch_extraction.harvesting.slide_list import find_entries
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import HARVESTED, Record, slide_id, write_record
from patch_extraction.slide_store.slide_tar import SlideTar
from shared.errors import UserError

NAMES = ("CD3/TCGA-A7.0f1c.svs", "CD3/ü 1.tif", "Ki-67/TCGA-A7.0f1c.svs", "b.ndpi")


@pytest.fixture
def wsi_dir(tmp_path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "wsi" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"slide" * (number + 1))
    return tmp_path / "wsi"


def found(wsi_dir: Path, text: str | bytes | None = None, **settings: object) -> list[SlideEntry]:
    """Return the slides that a CSV of this text chooses."""
    if text is not None:
        settings["slides"] = wsi_dir.parent / "slides.csv"
        settings["slides"].write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_entries(
        HarvestConfig(wsi_dir=wsi_dir, out=wsi_dir.parent / "out", **settings), HaematoxylinCounter()
    )


def test_without_a_csv_every_slide_is_of_its_folder_s_biomarker(wsi_dir):
    assert [(s.name, s.biomarker, s.slide_mpp, s.original) for s in found(wsi_dir)] == [
        (name, name.split("/")[0] if "/" in name else "", None, None) for name in NAMES
    ]


def test_a_csv_chooses_orders_and_overrides(wsi_dir):
    text = "biomarker,slide,slide_mpp\nPD-L1,b,0.23\n,CD3/TCGA-A7.0f1c.svs,\nCD8,ü 1.tif,0.5\n"
    sources = found(wsi_dir, text, slide_mpp=("0.26",))
    assert [(s.name, s.biomarker, s.slide_mpp) for s in sources] == [
        ("b.ndpi", "PD-L1", 0.23),
        ("CD3/TCGA-A7.0f1c.svs", "CD3", 0.26),
        ("CD3/ü 1.tif", "CD8", 0.5),
    ]
    assert [s.settings["biomarker"] for s in sources] == ["PD-L1", "CD3", "CD8"]
    assert [s.settings["slide_mpp"] for s in sources] == [0.23, 0.26, 0.5]


@pytest.mark.parametrize(
    "text",
    [
        "slide;slide_mpp\nb.ndpi;0.3\n",
        "slide\tslide_mpp\r\nb.ndpi\t0.3\r\n",
        "\ufeffslide,slide_mpp\n\nb.ndpi, 0.3\n\n",
        '"slide" , slide_mpp ,patient\nb.ndpi,0.3,"Doe, J."\n',
    ],
)
def test_csvs_as_spreadsheets_write_them(wsi_dir, text):
    assert [(s.name, s.slide_mpp) for s in found(wsi_dir, text)] == [("b.ndpi", 0.3)]


def test_further_columns_belong_to_the_slide(wsi_dir, capsys):
    (entry,) = found(wsi_dir, "slide,mpp,patient\nb,0.3,7\n")
    assert entry.columns == {"mpp": "0.3", "patient": "7"} and entry.slide_mpp is None
    assert "mpp, patient" in capsys.readouterr().out


def test_letters_may_be_composed_differently(wsi_dir):
    assert found(wsi_dir, f"slide\n{unicodedata.normalize('NFD', 'ü 1')}\n")[0].name == "CD3/ü 1.tif"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slide\nb\nc.svs\n", r"slides\.csv, line 3: there is no slide c\.svs in .*wsi; correct or remove"),
        (
            "slide\nTCGA-A7.0f1c.svs\n",
            r"line 2: .* may be CD3/TCGA-A7\.0f1c\.svs or Ki-67/TCGA-A7\.0f1c\.svs; give",
        ),
        ("slide\nb\nb.ndpi\n", r"line 3: b\.ndpi is named twice; remove one of the lines"),
        ("slide,slide_mpp\nb,40x\n", r"line 2: slide_mpp 40x is not a resolution; give um/px from 0\.05 to 20"),
        ("slide,slide_mpp\nb,352.8\n", r"slide_mpp 352\.8 is not a resolution"),
        ("slide,slide_mpp\nb,-0.25\n", r"slide_mpp -0\.25 is not a resolution"),
        ("slide,slide_mpp\nb,nan\n", r"slide_mpp nan is not a resolution"),
        ("slide;slide_mpp\nb;0,25\n", r"slide_mpp 0,25 is not a resolution"),
        ("slide,biomarker\nb,CD3, again,\n", r"line 2 has more fields than there are columns; put"),
        ("wsi,mpp\nb,0.25\n", r"has no column `slide` \(its columns: wsi, mpp\); the first line must name"),
        ("", r"has no column `slide` \(its columns: none\)"),
        ("slide\n\n", r"names no slide; give one a line"),
        (
            'slide\n"b\n' + "c.svs\n" * 30000,
            r"slides\.csv, after line 1: field larger .*; close all quotation marks",
        ),
        ("slide," + "x" * 200_000 + "\nb\n", r"slides\.csv, first line: field larger"),
        (b"slide\n\xfc.svs\n", r"is not UTF-8 text; save it as CSV in UTF-8"),
    ],
)
def test_wrong_csvs(wsi_dir, text, sentence):
    with pytest.raises(UserError, match=sentence):
        found(wsi_dir, text)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_slide_mpp_takes_names_as_they_are(wsi_dir, form):
    (wsi_dir / "ä [1].svs").write_bytes(b"S")
    word = unicodedata.normalize(form, "ä [1].svs")
    given = {source.name: source.slide_mpp for source in found(wsi_dir, slide_mpp=(f"{word}=0.3", "CD3/*=0.2"))}
    assert given == {NAMES[0]: 0.2, NAMES[1]: 0.2, NAMES[2]: None, NAMES[3]: None, "ä [1].svs": 0.3}


def test_a_csv_that_is_not_there(wsi_dir):
    with pytest.raises(UserError, match=r"cannot read --slides nowhere\.csv: No such file or directory; check"):
        found(wsi_dir, slides=Path("nowhere.csv"))


def twins(sources: list[SlideEntry]) -> dict[str, str]:
    return {source.name: source.original.name for source in sources if source.original}


def test_copies_and_links_are_harvested_once(wsi_dir):
    shutil.copy(wsi_dir / NAMES[0], wsi_dir / "z.svs")
    (wsi_dir / "a.svs").symlink_to(wsi_dir / "b.ndpi")
    assert twins(found(wsi_dir)) == {"z.svs": NAMES[0], "b.ndpi": "a.svs"}


def test_equally_large_slides_that_differ_are_no_copies(wsi_dir):
    """In one byte of a small file, in one of the pieces compared of a large one; and DICOM is never compared."""
    (wsi_dir / "z.svs").write_bytes(b"slidE")
    for name, content in (("l1.svs", 1), ("l2.svs", 2), ("l3.svs", 1)):
        with (wsi_dir / name).open("wb") as file:
            file.truncate(200 << 20)  # sparse: takes no room
            file.seek((200 << 20) - 5)
            file.write(bytes([content]))
    for folder in "xy":
        (wsi_dir / folder).mkdir()
        (wsi_dir / folder / "1.dcm").write_bytes(b"header")
    assert twins(found(wsi_dir)) == {"l3.svs": "l1.svs"}


def test_of_copies_the_finished_one_stays(wsi_dir):
    shutil.copy(wsi_dir / NAMES[0], wsi_dir / "z.svs")
    out = wsi_dir.parent / "out"
    with SlideTar(tar_path(out, slide_id("z.svs"))) as tar:
        pass
    size = (wsi_dir / "z.svs").stat().st_size
    write_record(out, Record("z.svs", slide_id("z.svs"), "", HARVESTED, source_bytes=size, **tar.record_fields))
    assert twins(found(wsi_dir)) == {NAMES[0]: "z.svs"}
