"""Reading slides at a given um/px: against OpenSlide itself, and against tissue whose every um is known."""

import errno
import os
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from shared.errors import UserError
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import Specimen, section
from shared.wsi.resampling import resample
from shared.wsi.slide import Slide, SlideError
from shared.wsi.slide_files import by_ending, find_slides, list_slides
from tests.shared.wsi.test_dicom import dicom_file

# um/px at level 0 of the real slides and where they say so; for the others, what is wrong with them.
READABLE = {
    "CD34_ihc_40x.svs": 0.263018,
    "chromogranin_ihc_40x_region.svs": 0.2528,
    "pancreas_he_20x_region.svs": 0.526,
    "oral_scc_he_4x.svs": 2.93,
    "CMU-1-Small-Region.svs": 0.499,
}
REFUSED = {
    "keratin_ihc_no_resolution_region.tiff": "does not state its resolution.*--slide-mpp",
    "tcga-cr-7395-01a-01-ts1.svs": "does not state its resolution.*--slide-mpp",
    "boxes.tiff": "impossible resolution .352.8 um/px.*--slide-mpp",
    "small_dicom.dcm": "cannot be read by OpenSlide",
    "broken.svs": "is not a slide",
    "truncated.svs": "is a TIFF, but cut short",
}


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return section(11, 420.8, 399.76)  # 1600 x 1520 px of 0.263 um: whole px on every level


@pytest.fixture(scope="module")
def sample(specimen, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "sample.svs"
    write_slide(path, specimen, 0.263, aperio=True, quality=95)
    return path


def difference(first: Image.Image, second: Image.Image | np.ndarray) -> float:
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


@pytest.mark.parametrize("name", READABLE)
def test_resolution_of_real_slides(real_data, name):
    with Slide(real_data / "slides" / name) as slide:
        assert slide.mpp == pytest.approx(READABLE[name])
        assert slide.resolution.source == "openslide.mpp-x"


@pytest.mark.parametrize("name", REFUSED)
def test_real_slides_that_are_refused(real_data, name):
    path = real_data / "slides" / name
    with pytest.raises(SlideError, match=REFUSED[name]) as caught:
        Slide(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_makes_a_silent_slide_usable(real_data):
    with Slide(real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs", slide_mpp=0.5) as slide:
        assert slide.level_mpps == pytest.approx((0.5, 1.0), rel=1e-3)


def test_at_the_levels_own_resolution_pixels_are_openslides(sample):
    with Slide(sample) as slide:
        ours = slide.read(37, 511, 300, 200, slide.mpp)
        theirs = openslide.OpenSlide(sample).read_region((37, 511), 0, (300, 200)).convert("RGB")
        assert difference(ours, theirs) == 0
        ours = slide.read(400, 240, 200, 100, slide.level_mpps[1])
        theirs = openslide.OpenSlide(sample).read_region((400, 240), 1, (200, 100)).convert("RGB")
        assert difference(ours, theirs) == 0


@pytest.mark.parametrize("mpp", [0.25, 0.263, 0.3, 0.5, 1.0, 2.0])
def test_a_read_shows_the_um_asked_for(sample, specimen, mpp):
    """The same place of the specimen, rendered directly at `mpp`, is the reference."""
    width, height = int(250 / mpp), int(200 / mpp)
    left, top = round(52.6 / mpp), round(105.2 / mpp)
    with Slide(sample) as slide:
        patch = slide.read(left * mpp / 0.263, top * mpp / 0.263, width, height, mpp)
    assert patch.size == (width, height)
    reference = specimen.render(mpp)
    expected = reference[top : top + height, left : left + width]
    shifted = reference[top : top + height, left + 1 : left + 1 + width]
    assert difference(patch, expected) < 5
    assert difference(patch, expected) < 0.75 * difference(patch, shifted)  # one pixel off would show


def test_the_coarsest_level_that_is_fine_enough(sample):
    with Slide(sample) as slide:
        assert [slide.window(mpp).level for mpp in (0.25, 0.263, 1.0, 1.052, 1.1, 4.3)] == [0, 0, 0, 1, 1, 2]
        assert slide.window(1.0).factor == pytest.approx(1.0 / 0.263)


def test_enlarging_has_a_limit(sample):
    with Slide(sample, slide_mpp=0.293) as slide:
        assert slide.window(0.25).level == 0
    with Slide(sample, slide_mpp=0.5) as slide:
        with pytest.raises(SlideError, match=r"0\.5 um/px and cannot be read at 0\.25"):
            slide.read(0, 0, 64, 64, 0.25)
        assert slide.read_pixels(0, 0, 64, 64, 0.25, allow_upsampling=True).shape == (64, 64, 3)


def test_outside_is_white(sample):
    with Slide(sample) as slide:
        width, height = slide.size
        for mpp in (slide.mpp, 0.3):
            pixels = np.asarray(slide.read(-100, -100, 80, 80, mpp))
            assert (pixels == 255).all()
            corner = np.asarray(slide.read(width - 40, height - 40, 80, 80, slide.mpp))
            assert (corner[45:, 45:] == 255).all()
            assert (corner[:40, :40] < 250).any()


class Plain:
    """256 x 192 um of one colour, in whole tiles."""

    def render(self, mpp: float) -> np.ndarray:
        return np.full((round(192 / mpp), round(256 / mpp), 3), 90, np.uint8)


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_resampling_takes_nothing_from_beyond_the_slide(tmp_path, reader):
    """A slide of one colour has it up to its edges, though the filter reaches further."""
    write_slide(tmp_path / "a.tif", Plain(), 0.25)
    with Slide(tmp_path / "a.tif", slide_mpp=0.25, reader=reader) as slide:
        assert slide.size == (1024, 768)
        for corner, size, mpp in (((0, 0), (341, 256), 0.75), ((544, 288), (384, 384), 0.3125)):
            pixels = np.asarray(slide.read(*corner, *size, mpp), int)
            assert np.abs(pixels - 90).max() <= 1


def test_overview_is_the_whole_slide(sample, specimen):
    with Slide(sample) as slide:
        picture = slide.overview(4.208)  # the coarsest level
        assert picture.size == (100, 95)
        small = Image.fromarray(specimen.render(0.263)).reduce(16)
        assert difference(picture, small) < 5  # a small JPEG
        assert slide.overview(0.1).size == slide.size  # no finer than the slide itself


def test_overview_is_read_in_blocks(real_data):
    """Against one read of everything, from a file with one level of 2220 x 2967 px, more than a block."""
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    whole = openslide.OpenSlide(path).read_region((0, 0), 0, (2220, 2967)).convert("RGB")
    with Slide(path) as slide:
        assert difference(slide.overview(0.499), whole) == 0
        picture = slide.overview(2.994)  # 6 px of the file for one
    canvas = Image.new("RGB", (2220, 2970), "white")
    canvas.paste(whole)
    assert difference(picture, canvas.resize(picture.size, Image.Resampling.BICUBIC)) < 1


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_levels_smaller_by_no_whole_number(real_data, reader):
    """Against the level read at once: nothing is shifted, nor mixed with the white beyond, wherever one reads."""
    path = real_data / "slides" / "chromogranin_ihc_40x_region.svs"
    with openslide.OpenSlide(path) as handle:
        columns, rows = handle.level_dimensions[2]
        whole = np.asarray(handle.read_region((0, 0), 2, (columns, rows)).convert("RGB"))
        assert not handle.level_downsamples[2].is_integer()
    with Slide(path, reader=reader) as slide:
        mpp = 1.5 * slide.level_mpps[2]
        width, height = (int(side * slide.mpp / mpp) for side in slide.size)
        expected = resample(whole, (width, height), (0, 0, 1.5 * width, 1.5 * height))
        picture = np.asarray(slide.read(0, 0, width, height, mpp), int)
        assert np.abs(picture - expected).mean() < 0.05
        step = mpp / slide.mpp  # px of level 0
        for k in (1, 7, 30):
            shifted = np.asarray(slide.read(-k * step, -k * step, width, height, mpp), int)
            assert np.abs(shifted[k + 2 :, k + 2 :] - picture[2 : height - k, 2 : width - k]).mean() < 0.05
            assert (shifted[: max(0, k - 2)] == 255).all()
        right = slide.size[0] - 300 * step
        edge = np.asarray(slide.read(right, 0, 300, height, mpp), int)
        assert np.abs(edge[:, -1] - edge[:, -2]).mean() < 10  # white would be further off


def without_tile(path: Path, column: int, row: int) -> None:
    """Overwrite one tile of level 0 with zeros."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = row * -(-page.imagewidth // page.tilewidth) + column
        offset, size = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def test_one_bad_tile_costs_one_read(specimen, tmp_path):
    """OpenSlide refuses a handle for good after an error; the slide must be opened anew."""
    write_slide(tmp_path / "a.tif", specimen, 0.25)
    without_tile(tmp_path / "a.tif", 2, 3)
    with Slide(tmp_path / "a.tif") as slide:
        lost = []
        for row in range(6):
            for column in range(6):
                try:
                    slide.read(column * 256, row * 256, 256, 256, 0.25)
                except SlideError as error:
                    assert "unreadable parts" in str(error)
                    lost.append((column, row))
        assert lost == [(2, 3)]
        white = (np.asarray(slide.overview(0.5)) == 255).all(axis=2)  # read from level 0, in one block
    assert white[384:512, 256:384].all()  # the tile; and its neighbours only as far as blocks are halved
    assert white.mean() < 0.25


def test_a_slide_that_opens_but_cannot_be_read(real_data):
    slide = Slide(real_data / "slides" / "unreadable.svs")
    with pytest.raises(SlideError, match="unreadable parts"):
        slide.overview(8.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"just text\n" * 30, "is not a slide"), (b"II*\0" + bytes(100), "cut short")],
)
def test_files_that_are_no_slides(tmp_path, content, words):
    path = tmp_path / "slide.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=words):
        Slide(path)


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("strips", {"rowsperstrip": 64}),
        ("big-endian", {"tile": (256, 256), "byteorder": ">"}),
        ("WebP", {"tile": (256, 256), "compression": 50001}),
        ("JPEG 2000", {"tile": (256, 256), "compression": 34712}),
        ("JPEG XL", {"tile": (256, 256), "compression": 50002}),
    ],
)
def test_tiffs_that_openslide_refuses_are_explained(tmp_path, fault, options):
    path = tmp_path / "a slide.tif"
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    compression = options.pop("compression", None)
    with tifffile.TiffWriter(path, byteorder=options.pop("byteorder", "<")) as file:
        file.write(pixels_HW3, photometric="rgb", metadata=None, compression=compression and "zlib", **options)
    if compression:  # as tifffile alone does not write it
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["Compression"].overwrite(compression)
    target = shlex.quote(str(tmp_path / "a slide-tiled.tif"))
    with pytest.raises(SlideError, match=rf"{fault}.*vips tiffsave {shlex.quote(str(path))} {target} --tile"):
        Slide(path, 0.25)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.svs")
    start = time.monotonic()
    with pytest.raises(SlideError, match="not a regular file"):
        Slide(tmp_path / "a.svs")
    assert time.monotonic() - start < 5


def test_a_slide_cut_short(sample, tmp_path):
    path = tmp_path / "cut.svs"
    path.write_bytes(sample.read_bytes()[: sample.stat().st_size // 2])
    with pytest.raises(SlideError, match="cut short"):
        Slide(path)


def test_a_missing_slide(tmp_path):
    with pytest.raises(SlideError, match="cannot be opened: No such file"):
        Slide(tmp_path / "no.svs")


def shorten_tile_tables(path: Path, by: int) -> None:
    """Let level 0 list fewer tiles than its grid has."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        tables = [(tags[name].offset, tags[name].count - by) for name in ("TileOffsets", "TileByteCounts")]
    with path.open("r+b") as file:
        for offset, count in tables:
            file.seek(offset + 4)
            file.write(struct.pack("<I", count))


@pytest.mark.parametrize("fault", ["short tables", "stale handle"])
def test_what_the_direct_reader_cannot_do_is_left_to_openslide(specimen, tmp_path, monkeypatch, fault):
    write_slide(tmp_path / "a.tif", specimen, 0.25)
    if fault == "short tables":
        shorten_tile_tables(tmp_path / "a.tif", by=3)
    else:
        stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        monkeypatch.setattr("os.pread", lambda *_: (_ for _ in ()).throw(stale))
    outcomes = []
    for reader in ("auto", "openslide"):
        with Slide(tmp_path / "a.tif", reader=reader) as slide:
            width, height = slide.size
            for corner in ((0, 0), (width - 300, height - 300)):
                try:
                    outcomes.append(np.asarray(slide.read(*corner, 300, 300, 0.25)).tobytes())
                except SlideError as error:
                    outcomes.append(str(error))
    assert outcomes[:2] == outcomes[2:]
    assert isinstance(outcomes[0], bytes)


def test_find_slides(tmp_path):
    for name in ("b.svs", "A.TIFF", "sub/c.ndpi", "sub/deep/ü 1.mrxs", "dicom/1.dcm", "dicom/2.dcm"):
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("notes.txt", ".hidden.svs", "sub/x.svs.part"):
        (tmp_path / "slides" / name).touch()
    (tmp_path / "slides" / "linked").symlink_to(tmp_path / "slides" / "sub")
    (tmp_path / "slides" / "sub" / "loop").symlink_to(tmp_path / "slides")
    found = [path.relative_to(tmp_path / "slides").as_posix() for path in find_slides(tmp_path / "slides")]
    assert len(found) == len(set(found)) == 5
    assert [name.split("/")[-1] for name in found] == ["A.TIFF", "b.svs", "1.dcm", "c.ndpi", "ü 1.mrxs"]


def test_two_dicom_slides_in_one_folder(tmp_path):
    """Each of two files; what cannot be read as DICOM is taken for one slide, as it was all along."""
    for name, series in (("1.dcm", "1.2.3"), ("2.dcm", "1.2.4"), ("3.DCM", "1.2.3"), ("4.dcm", "1.2.4")):
        (tmp_path / name).write_bytes(dicom_file(series))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "5.dcm").write_bytes(dicom_file("1.2.3"))
    (tmp_path / "6.dcm").touch()
    (tmp_path / "7.dcm").write_bytes(dicom_file("1.2.5")[:300])
    found = [path.relative_to(tmp_path).as_posix() for path in find_slides(tmp_path)]
    assert found == ["1.dcm", "2.dcm", "6.dcm", "other/5.dcm"]


def test_find_slides_in_a_wrong_place(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        find_slides(tmp_path / "nowhere")
    (tmp_path / "a.svs").touch()
    with pytest.raises(UserError, match="is a file; give its folder"):
        find_slides(tmp_path / "a.svs")


def test_torch_is_not_imported():
    code = "import sys, shared.wsi.slide, shared.wsi.tissue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_slides_of_other_endings_are_found_by_content(sample, tmp_path):
    """What is passed over is listed; a download in progress begins like a whole slide."""
    for name in ("a.qptiff", "b.btf", "c.tf8", "d.tiff.partial", "e.svs.crdownload", "no ending"):
        shutil.copy(sample, tmp_path / name)
    (tmp_path / "dicom").write_bytes(dicom_file("1.2.3"))
    (tmp_path / "notes.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "plain.lsm").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "m.mrxs").touch()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Data0001.dat").touch()
    os.mkfifo(tmp_path / "pipe.log")
    listing = list_slides(tmp_path)
    assert [path.name for path in listing.slides] == [
        "a.qptiff",
        "b.btf",
        "c.tf8",
        "dicom",
        "m.mrxs",
        "no ending",
    ]
    assert by_ending(listing.passed_over) == "1 .crdownload, 1 .gz, 1 .log, 1 .lsm, 1 .partial"
