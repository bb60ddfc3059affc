"""Keys, slide tars and their records."""

import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from patch_extraction.config import SlideEntry
from patch_extraction.slide_store.completed import stored_record
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.fingerprint import fingerprint
from patch_extraction.slide_store.slide_record import HARVESTED, Record, slide_id, write_record
from patch_extraction.slide_store.slide_tar import SlideTar, as_jpeg, members, pixel_sums, read_at
from shared.samples.specimen import section


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("TCGA-A7-A0DA.0f1c-5a3e.svs", "TCGA-A7-A0DA_0f1c-5a3e"),
        ("Ki-67/ü 1.svs", "__1"),
        ("a/" + "x" * 200 + ".svs", "x" * 64),
    ],
)
def test_slide_ids_are_safe_and_readable(name, stem):
    made = slide_id(name)
    assert made[:-9] == stem
    assert len(made) <= 73
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in made)


def test_slide_ids_tell_folders_and_endings_apart():
    assert len({slide_id(name) for name in ("a.svs", "a.tif", "x/a.svs", "y/a.svs", "x.a.svs", "x a.svs")}) == 6


def write(path, pictures) -> SlideTar:
    with SlideTar(path) as tar:
        for index, pixels in enumerate(pictures):
            tar.add(f"slide_{index}_0", pixels, {"cells": index})
    return tar


def test_members_read_back(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    tar = write(tmp_path / "a.tar", pictures)
    with (tmp_path / "a.tar").open("rb") as file:
        found = members(file)
        texts = [json.loads(read_at(file, span)) for name, span in found if name.endswith(".json")]
    assert [name for name, _ in found][:2] == ["slide_0_0.jpg", "slide_0_0.json"]
    assert texts == [{"cells": 0}, {"cells": 1}, {"cells": 2}]
    sums, squares = tar.record_fields["pixel_sums"]
    assert sums == tuple(pictures.astype(int).sum((0, 1, 2)))
    assert squares == tuple((pictures.astype(int) ** 2).sum((0, 1, 2)))


def test_patches_are_jpeg_of_quality_90_with_halved_chroma(tmp_path):
    write(tmp_path / "a.tar", np.zeros((1, 64, 64, 3), np.uint8))
    with tarfile.open(tmp_path / "a.tar") as tar, Image.open(tar.extractfile("slide_0_0.jpg")) as image:
        assert image.layer[0][1:3] == (2, 2)  # luma sampled twice as densely as chroma
        assert image.quantization[0][0] == 3  # the first entry of libjpeg's table at quality 90


def test_patches_are_as_good_as_pillow_s():
    """Of natural structure; the encoders differ in the last bit of their cosines."""
    pixels = section(3, 128.0, 128.0).render(0.25)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=90, subsampling="4:2:0")
    ours, theirs = as_jpeg(pixels), stream.getvalue()
    assert len(ours) == pytest.approx(len(theirs), rel=0.01)
    errors = [
        np.square(np.asarray(Image.open(io.BytesIO(jpeg)), float) - pixels).mean() for jpeg in (ours, theirs)
    ]
    assert errors[0] < 1.03 * errors[1]


@pytest.mark.parametrize("shape", [(1, 1), (256, 3), (257, 5), (600, 40)])
def test_sums_of_px_are_exact(shape):
    for pixels in (
        np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8),
        np.full((*shape, 3), 255, np.uint8),
    ):
        sums, squares = pixel_sums(pixels)
        assert sums.tolist() == pixels.astype(int).sum((0, 1)).tolist()
        assert squares.tolist() == (pixels.astype(int) ** 2).sum((0, 1)).tolist()


def test_equal_content_makes_equal_bytes(tmp_path):
    pictures = np.full((2, 32, 32, 3), 77, np.uint8)
    assert write(tmp_path / "a.tar", pictures).record_fields == write(tmp_path / "b.tar", pictures).record_fields


def test_an_error_leaves_no_tar(tmp_path):
    with pytest.raises(RuntimeError), SlideTar(tmp_path / "a.tar") as tar:
        tar.add("k_0_0", np.zeros((8, 8, 3), np.uint8), {})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def done(tmp_path) -> tuple[SlideEntry, Record]:
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"slide")
    source = SlideEntry(slide, "a.svs", slide_id("a.svs"), "", None, {"seed": 0})
    tar = write(tar_path(tmp_path, source.slide_id), np.zeros((1, 8, 8, 3), np.uint8))
    record = Record("a.svs", source.slide_id, "", HARVESTED, kept=1, source_bytes=5, settings={"seed": 0})
    file = {"source_changed": slide.stat().st_mtime_ns, "fingerprint": fingerprint(slide)}
    record = replace(record, **file, **tar.record_fields)
    write_record(tmp_path, record)
    return source, record


def test_a_finished_slide_is_recognised(done, tmp_path):
    source, record = done
    found = stored_record(tmp_path, source)
    assert found is not None
    assert (found.kept, found.sha256, found.settings) == (1, record.sha256, {"seed": 0})


def test_a_slide_that_cannot_be_looked_at_stays_finished(done, tmp_path):
    """A link to a disk that is not mounted: hours of harvest must not go with it."""
    source, record = done
    source.path.unlink()
    source.path.symlink_to(tmp_path / "elsewhere" / "a.svs")
    assert stored_record(tmp_path, source).sha256 == record.sha256


def test_a_copied_slide_stays_finished(done, tmp_path):
    """The same bytes with another date."""
    source, record = done
    os.utime(source.path, (1e9, 1e9))
    assert stored_record(tmp_path, source).sha256 == record.sha256


def damage_tar(out, source):
    path = tar_path(out, source.slide_id)
    path.write_bytes(path.read_bytes()[:-1000])


def drop_tar(out, source):
    tar_path(out, source.slide_id).unlink()


def drop_record(out, source):
    tar_path(out, source.slide_id).with_suffix(".json").unlink()


def cut_record(out, source):
    path = tar_path(out, source.slide_id).with_suffix(".json")
    path.write_text(path.read_text()[:50])


def change_slide(out, source):
    source.path.write_bytes(b"another slide")


def put_another_of_its_size(out, source):
    source.path.write_bytes(b"SLIDE")
    os.utime(source.path, (1e9, 1e9))


@pytest.mark.parametrize(
    "change", [damage_tar, drop_tar, drop_record, cut_record, change_slide, put_another_of_its_size]
)
def test_what_is_not_whole_is_not_finished(done, tmp_path, change):
    change(tmp_path, done[0])
    assert stored_record(tmp_path, done[0]) is None
