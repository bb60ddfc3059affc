"""Tiles read directly, beside OpenSlide: the same pixels of every slide at hand, and of odd layouts."""

import contextlib
import io
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from shared.wsi.jpeg_tile_reader import NotReadError, TiledTiff
from shared.wsi.slide import Slide, SlideError

# um/px where the slide states none, and whether its tiles are JPEG.
SLIDES = {
    "CD34_ihc_40x.svs": (None, True),
    "chromogranin_ihc_40x_region.svs": (None, True),
    "keratin_ihc_no_resolution_region.tiff": (0.25, True),
    "pancreas_he_20x_region.svs": (None, True),
    "oral_scc_he_4x.svs": (None, True),
    "CMU-1-Small-Region.svs": (None, True),
    "tcga-cr-7395-01a-01-ts1.svs": (0.5, False),
    "boxes.tiff": (0.5, False),
}
RGB, YCBCR = 2, 6  # PhotometricInterpretation
WIDTH, HEIGHT = 700, 530  # of the slides written here; no multiple of a tile's sides


def tiles_of(path: Path) -> TiledTiff:
    with openslide.OpenSlide(path) as handle:
        return TiledTiff(path, handle.properties, handle.level_dimensions)


def theirs(handle: openslide.OpenSlide, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
    """OpenSlide's px on white."""
    region = handle.read_region(corner, level, size)
    white = Image.new("RGB", size, "white")
    white.paste(region, mask=region.getchannel("A"))
    return np.asarray(white)


def places(rng: np.random.Generator, width: int, height: int, number: int) -> Iterator[tuple]:
    """Corners and sizes inside, across every edge and outside of a level."""
    for _ in range(number):
        corner = (int(rng.integers(-90, width + 20)), int(rng.integers(-90, height + 20)))
        yield corner, (int(rng.integers(1, 600)), int(rng.integers(1, 600)))
    yield (-30, -30), (60, 60)
    yield (width - 30, height - 30), (60, 60)
    yield (-500, -500), (100, 100)


@pytest.mark.parametrize("name", SLIDES)
def test_pixels_of_real_slides(real_data, name):
    """At the full resolution, where everything is read directly, and with every level and um/px."""
    path = real_data / "slides" / name
    slide_mpp, jpeg = SLIDES[name]
    rng = np.random.default_rng(0)
    with Slide(path, slide_mpp) as ours, Slide(path, slide_mpp, reader="openslide") as other:
        if jpeg:
            tiles, handle = tiles_of(path), openslide.OpenSlide(path)
            for corner, size in places(rng, *ours.size, 12):
                read = np.asarray(tiles.read(0, corner, size))
                np.testing.assert_array_equal(read, theirs(handle, corner, 0, size))
        for mpp in (*ours.level_mpps, 0.9 * ours.mpp, 1.7 * ours.mpp):
            for (x, y), (width, height) in places(rng, ours.size[0], ours.size[1], 2):
                box = (x, y, width // 2 + 1, height // 2 + 1, mpp)
                np.testing.assert_array_equal(ours.read(*box), other.read(*box))


def test_coarse_levels_are_read_directly_where_they_are_whole(real_data):
    """Each level of `level_downsamples` (1, 4, 16): no blur, no OpenSlide."""
    path = real_data / "slides" / "pancreas_he_20x_region.svs"
    tiles, handle = tiles_of(path), openslide.OpenSlide(path)
    assert handle.level_downsamples[1] == 4
    for corner, size in places(np.random.default_rng(1), *handle.level_dimensions[1], 10):
        level_0 = (4 * corner[0], 4 * corner[1])
        np.testing.assert_array_equal(tiles.read(1, corner, size), theirs(handle, level_0, 1, size))


@pytest.mark.parametrize("name", ["tcga-cr-7395-01a-01-ts1.svs", "boxes.tiff"])
def test_other_compressions_are_left_to_openslide(real_data, name):
    with pytest.raises(NotReadError):
        tiles_of(real_data / "slides" / name)


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """Colours at all scales, so that a wrong matrix, chroma filter or place shows."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), 3)
    return np.clip(np.asarray(coarse) + rng.normal(0, 12, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


def encoded(tile_HW3: np.ndarray, subsampling: str, rgb: bool = False, **options: object) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(tile_HW3)
    picture.save(stream, "JPEG", quality=85, subsampling=subsampling, keep_rgb=rgb, **options)
    return stream.getvalue()


def without_hints(stream: bytes) -> bytes:
    """Return a stream that does not say that its colours are RGB, as Aperio's: no Adobe segment."""
    place, kept = 2, [stream[:2]]
    while stream[place + 1] != 0xDA:
        end = place + 2 + struct.unpack(">H", stream[place + 2 : place + 4])[0]
        if stream[place + 1] not in (0xE0, 0xEE):
            kept.append(stream[place:end].replace(b"R\x11", b"\1\x11"))
        place = end
    whole = b"".join([*kept, stream[place:]])
    for name, number in ((b"G", b"\2"), (b"B", b"\3")):
        whole = whole.replace(name + b"\x11\0", number + b"\x11\0", 1)
    return whole.replace(b"R\0G\0B\0", b"\1\0\2\0\3\0")


def write_tiff(
    path: Path,
    tile: tuple[int, int],
    images: list[list[bytes]],
    photometric: int = YCBCR,
    subsampling: tuple[int, int] = (1, 1),
    tables: bytes = b"",
    bigtiff: bool = False,
) -> Path:
    """Directories of the slides' size, of `tile` (height, width) px.

    Written as deflated and relabelled, for tifffile writes JPEG only beside a large package of codecs.
    """
    tags = [(530, "H", 2, subsampling)] + ([(347, "B", len(tables), tables)] if tables else [])
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for streams in images:
            file.write(
                iter(streams),
                shape=(HEIGHT, WIDTH, 3),
                dtype=np.uint8,
                tile=tile,
                compression="zlib",
                photometric="rgb",
                metadata=None,
                extratags=tags,
            )
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(7)
            page.tags["PhotometricInterpretation"].overwrite(photometric)
    return path


def cut(image_HW3: np.ndarray, tile: tuple[int, int]) -> list[np.ndarray]:
    """Tiles row by row; those at the edge are filled up with the edge's px."""
    rows, columns = -(-image_HW3.shape[0] // tile[0]), -(-image_HW3.shape[1] // tile[1])
    padding = (rows * tile[0] - image_HW3.shape[0], columns * tile[1] - image_HW3.shape[1])
    padded = np.pad(image_HW3, ((0, padding[0]), (0, padding[1]), (0, 0)), mode="edge")
    return [
        padded[row * tile[0] : (row + 1) * tile[0], column * tile[1] : (column + 1) * tile[1]]
        for row, column in itertools.product(range(rows), range(columns))
    ]


def assert_same(path: Path) -> None:
    tiles, handle = tiles_of(path), openslide.OpenSlide(path)
    for corner, size in places(np.random.default_rng(5), WIDTH, HEIGHT, 6):
        np.testing.assert_array_equal(tiles.read(0, corner, size), theirs(handle, corner, 0, size))


@pytest.mark.parametrize("tile", [(256, 256), (240, 240), (128, 384)])
@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_ycbcr_layouts(texture, tmp_path, tile, tables, subsampling):
    factors = {"4:2:0": (2, 2), "4:2:2": (2, 1), "4:4:4": (1, 1)}[subsampling]
    parts = cut(texture, tile)
    common = encoded(parts[0], subsampling, streamtype=1) if tables else b""
    streams = [encoded(part, subsampling, streamtype=2 if tables else 0) for part in parts]
    path = tmp_path / "a.tif"
    assert_same(write_tiff(path, tile, [streams], YCBCR, factors, common, bigtiff=tables))


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("tables", [False, True])
def test_rgb_layouts(texture, tmp_path, hints, tables):
    """Most of Aperio's slides are RGB inside the JPEG, and only the TIFF says so."""
    parts = cut(texture, (256, 256))
    common = encoded(parts[0], "4:4:4", rgb=True, streamtype=1) if tables else b""
    streams = [encoded(part, "4:4:4", rgb=True, streamtype=2 if tables else 0) for part in parts]
    if not hints:
        streams = [without_hints(stream) for stream in streams]
    path = write_tiff(tmp_path / "a.tif", (256, 256), [streams], RGB, tables=common)
    assert_same(path)
    error = np.abs(np.asarray(tiles_of(path).read(0, (0, 0), (WIDTH, HEIGHT)), float) - texture)
    assert error.mean() < 6  # and the colours are those written


def test_the_tiff_has_the_last_word_on_colours(texture, tmp_path):
    """A JFIF stream, YCbCr by its own standard, in a TIFF that says RGB."""
    streams = [encoded(part, "4:4:4") for part in cut(texture, (256, 256))]
    assert_same(write_tiff(tmp_path / "a.tif", (256, 256), [streams], RGB))


def test_progressive_streams_and_restart_markers(texture, tmp_path):
    parts = cut(texture, (256, 256))
    streams = [
        encoded(part, "4:2:0", progressive=index % 2 == 0, restart_marker_blocks=3)
        for index, part in enumerate(parts)
    ]
    assert_same(write_tiff(tmp_path / "a.tif", (256, 256), [streams], YCBCR, (2, 2)))


@pytest.mark.parametrize("damage", ["zeros", "cut", "flipped", "smaller", "missing"])
def test_a_damaged_tile_costs_the_reads_that_touch_it(texture, tmp_path, damage):
    """The same reads fail as OpenSlide's, with the same sentence; all others give the same px."""
    parts = cut(texture, (256, 256))
    streams = [encoded(part, "4:2:0") for part in parts]
    middle = streams[4]
    streams[4] = {
        "zeros": bytes(len(middle)),
        "cut": middle[: len(middle) // 2],
        "flipped": middle[:1500] + bytes(255 - byte for byte in middle[1500:1600]) + middle[1600:],
        "smaller": encoded(parts[4][:128, :128], "4:2:0"),
        "missing": b"",
    }[damage]
    path = write_tiff(tmp_path / "a.tif", (256, 256), [streams], YCBCR, (2, 2))
    lost = 0
    with Slide(path, 0.25) as ours, Slide(path, 0.25, reader="openslide") as other:
        for x, y in itertools.product(range(0, WIDTH, 128), range(0, HEIGHT, 128)):
            outcomes = []
            for slide in (ours, other):
                try:
                    outcomes.append(np.asarray(slide.read(x, y, 128, 128, 0.25)))
                except SlideError as error:
                    outcomes.append(str(error))
                    lost += 1
            np.testing.assert_array_equal(*outcomes)
    assert lost == (0 if damage == "missing" else 2 * 4)


def test_a_gap_in_an_aperio_slide(tmp_path):
    """OpenSlide then draws that place of every coarser level anew, from the finer one."""
    path = tmp_path / "a.svs"
    write_slide(path, section(3, 512.0, 512.0), 0.25, aperio=True)
    with tifffile.TiffFile(path) as tiff:
        sizes = tiff.pages[0].tags["TileByteCounts"].valueoffset
    with path.open("r+b") as file:
        file.seek(sizes + 4 * 9)
        file.write(bytes(4))
    with Slide(path) as ours, Slide(path, reader="openslide") as other:
        for mpp in ours.level_mpps:
            whole = (0, 0, round(512 / mpp), round(512 / mpp), mpp)
            np.testing.assert_array_equal(ours.read(*whole), other.read(*whole))
    with pytest.raises(NotReadError, match="lacks tiles"):
        tiles_of(path)


def test_two_directories_of_one_size_are_left_to_openslide(texture, tmp_path):
    images = [[encoded(part, "4:4:4") for part in cut(image, (256, 256))] for image in (texture, 255 - texture)]
    path = write_tiff(tmp_path / "a.tif", (256, 256), images)
    with pytest.raises(NotReadError):
        tiles_of(path)


def test_tiles_read_before_are_forgotten_in_time(tmp_path, monkeypatch):
    """Memory does not grow with the slide; what was forgotten is read again."""
    write_slide(tmp_path / "a.svs", section(3, 300.0, 300.0), 0.25)
    monkeypatch.setattr("shared.wsi.jpeg_tile_reader.CACHE_BYTES", 3 * 256 * 256 * 3)
    tiles, handle = tiles_of(tmp_path / "a.svs"), openslide.OpenSlide(tmp_path / "a.svs")
    for corner, size in places(np.random.default_rng(0), 1200, 1200, 10):
        np.testing.assert_array_equal(tiles.read(0, corner, size), theirs(handle, corner, 0, size))
        assert tiles.cached_bytes <= 3 * 256 * 256 * 3


def test_a_closed_slide_leaves_no_file_open(tmp_path):
    write_slide(tmp_path / "a.svs", section(3, 100.0, 100.0), 0.25)
    before = open_files()
    for _ in range(3):
        with Slide(tmp_path / "a.svs") as slide:
            slide.read(0, 0, 64, 64, 0.25)
    assert open_files() == before


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return sorted(name for name in found if name.endswith(".svs"))
