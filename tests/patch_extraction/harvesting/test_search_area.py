"""Harvests of annotated regions, and tissue masks that QuPath can edit."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patch_extraction.config import HarvestConfig, validate
from patch_extraction.counters.base import HaematoxylinCounter
from patch_extraction.harvesting.search_area import search_area
from patch_extraction.harvesting.slide_harvest import harvest_slide
from patch_extraction.harvesting.slide_list import find_entries
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import FAILED, HARVESTED, Record
from shared.errors import UserError
from shared.samples.pyramidal_tiff import write_pyramid
from shared.samples.sample_slides import jpeg_level
from shared.wsi.slide import Slide

COUNTER = HaematoxylinCounter()
NAME = "Ki-67/S.1 ü.a.svs"  # 2048 x 2048 px: four by four patches


def harvest(wsi_dir: Path, out: Path, name: str = NAME, **settings: Any) -> tuple[Record, set[tuple[int, ...]]]:
    """Harvest one slide; returns its record and the corners of its patches."""
    config = HarvestConfig(wsi_dir=wsi_dir, out=out, min_cells=1, screen=False, **settings)
    entry = next(entry for entry in find_entries(config, COUNTER) if entry.name == name)
    record = harvest_slide(entry, config, COUNTER)
    if record.status != HARVESTED:
        return record, set()
    with tarfile.open(tar_path(out, record.slide_id)) as tar:
        keys = [name.removesuffix(".jpg").split("_") for name in tar.getnames() if name.endswith(".jpg")]
    return record, {(int(key[-2]), int(key[-1])) for key in keys}


def region(name: str, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"objectType": "annotation", "classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [corners]}, "properties": properties}


def write(path: Path, *features: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_regions_replace_the_tissue_mask(wsi_dir: Path, tmp_path: Path) -> None:
    everything = {(x, y) for x in range(0, 2048, 512) for y in range(0, 2048, 512)}
    assert harvest(wsi_dir, tmp_path / "all")[1] == everything
    left, ignored = region("Tumour", 0, 0, 1024, 2048), region("Ignore*", 0, 0, 512, 512)
    write(tmp_path / "regions/Ki-67/S.1 ü.a.geojson", left, ignored, region("Stroma", 1024, 0, 2048, 512))
    record, corners = harvest(wsi_dir, tmp_path / "both", regions=tmp_path / "regions")
    row = {corner for corner in everything if corner[1] == 0}
    assert corners == ({corner for corner in everything if corner[0] < 1024} | row) - {(0, 0)}
    assert record.tissue_mm2 == pytest.approx((1024 * 2048 + 1024 * 512 - 512 * 512) * 0.25**2 * 1e-6, rel=0.01)
    record, corners = harvest(wsi_dir, tmp_path / "one", regions=tmp_path / "regions", region_class=("Stroma",))
    assert corners == {(1024, 0), (1536, 0)}


def test_tissue_goes_to_qupath_and_comes_back(wsi_dir: Path, tmp_path: Path) -> None:
    before, corners = harvest(wsi_dir, tmp_path / "a", tissue_geojson=True)
    path = tmp_path / f"a/tissue/{NAME}.geojson"
    features = json.loads(path.read_text())["features"]
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"Tissue"}
    after, same = harvest(wsi_dir, tmp_path / "b", regions=tmp_path / "a/tissue")
    assert same == corners and after.tissue_mm2 == before.tissue_mm2
    write(path, *features, region("Ignore*", 0, 0, 2048, 1024))  # a correction
    harvest(wsi_dir, tmp_path / "a", tissue_geojson=True, overwrite=True)
    assert len(json.loads(path.with_name(path.name + ".bak").read_text())["features"]) == len(features) + 1
    path.with_name(path.name + ".bak").replace(path)
    _, below = harvest(wsi_dir, tmp_path / "c", regions=tmp_path / "a/tissue")
    assert below == {corner for corner in corners if corner[1] >= 1024}


def test_masks_of_any_shape_come_back_as_they_were(tmp_path: Path) -> None:
    """Rings with islands, pieces that touch at corners, a level that is smaller by no whole number."""
    random = np.random.default_rng(0)
    image = np.full((1500, 1999, 3), 240, np.uint8)
    for x, y in random.integers(200, 1300, (12, 2)):
        image[y : y + 190, x : x + 260] = (190, 90, 160)
    image[600:700, 500:900] = 240
    (tmp_path / "slides").mkdir()
    level = jpeg_level(Image.fromarray(image), 90)
    write_pyramid(tmp_path / "slides/a.svs", [level], "Aperio |MPP = 0.9")
    config = HarvestConfig(wsi_dir=tmp_path / "slides", out=tmp_path / "out", tissue_geojson=True, min_cells=0)
    (entry,) = find_entries(config, COUNTER)
    harvest_slide(entry, config, COUNTER)
    with Slide(entry.path) as slide:
        expected = search_area(slide, entry, config).mask
        again = HarvestConfig(wsi_dir=tmp_path / "slides", regions=tmp_path / "out/tissue")
        (entry,) = find_entries(again, COUNTER)
        assert (search_area(slide, entry, again).mask == expected).all()
    assert 0.05 < expected.mean() < 0.9


def test_regions_that_do_not_fit_cost_their_slide(wsi_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir()
    for feature, word in [
        (None, r"Ki-67/S.1 ü.a.geojson"),
        (region("Stroma", 0, 0, 512, 512), "--region-class"),
        (region("Tumour", 9000, 0, 9512, 512), "outside"),
    ]:
        if feature:
            write(tmp_path / "regions/Ki-67/S.1 ü.a.geojson", feature)
        record, _ = harvest(wsi_dir, tmp_path / "o", regions=tmp_path / "regions", region_class=("Tumour",))
        assert record.status == FAILED and word in record.reason
    one = write(tmp_path / "one.geojson", region("Tumour", 0, 0, 512, 512))
    with pytest.raises(UserError, match="--regions"):
        harvest(wsi_dir, tmp_path / "o", regions=one)
    wrong_options: list[dict[str, Any]] = [
        {"regions": tmp_path / "nowhere"},
        {"region_class": ("a",)},
        {"regions": one, "tissue_geojson": True},
    ]
    for wrong in wrong_options:
        with pytest.raises(UserError, match="--region"):
            validate(HarvestConfig(**wrong))


def test_edited_regions_are_other_settings(wsi_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "regions/Ki-67/S.1 ü.a.geojson", region("Tumour", 0, 0, 512, 512))
    config = HarvestConfig(wsi_dir=wsi_dir, regions=tmp_path / "regions")
    before = find_entries(config, COUNTER)[0].settings
    assert find_entries(config, COUNTER)[0].settings == before
    write(path, region("Tumour", 0, 0, 512, 1024))
    assert find_entries(config, COUNTER)[0].settings != before
    assert not find_entries(HarvestConfig(wsi_dir=wsi_dir), COUNTER)[0].settings.keys() & {
        "regions",
        "region_class",
    }


@pytest.mark.parametrize(
    ("mode", "black", "white"),
    [("L", 0, 1), ("1", 0, 1), ("RGB", (0, 0, 0), (0, 0, 9)), ("RGBA", (255, 255, 255, 0), (255, 0, 0, 255))],
)
def test_masks_of_all_modes(mode: str, black: Any, white: Any, wsi_dir: Path, tmp_path: Path) -> None:
    """Labels, black and white, colours, transparency; of another size than the tissue mask."""
    mask = Image.new(mode, (100, 100), black)
    mask.paste(white, (0, 0, 50, 100))
    (tmp_path / "masks/Ki-67").mkdir(parents=True)
    mask.save(tmp_path / "masks/Ki-67/S.1 ü.a.png")
    record, corners = harvest(wsi_dir, tmp_path / "out", masks=tmp_path / "masks")
    assert corners == {(x, y) for x in (0, 512) for y in range(0, 2048, 512)}
    assert record.tissue_mm2 == pytest.approx(1024 * 2048 * 0.25**2 * 1e-6, rel=0.01)


def test_masks_that_cannot_be_used(wsi_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "masks/Ki-67").mkdir(parents=True)
    path = tmp_path / "masks/Ki-67/S.1 ü.a.png"
    for make, reason in (
        (lambda: None, "with the mask of this slide"),
        (lambda: path.write_bytes(b"no image"), "cannot be read as a mask"),
        (lambda: Image.new("L", (100, 80), 1).save(path), "100x80 px, which is not the shape of"),
        (lambda: Image.new("L", (100, 100), 0).save(path), "is all black"),
    ):
        make()
        record, _ = harvest(wsi_dir, tmp_path / "out", masks=tmp_path / "masks", overwrite=True)
        assert record.status == FAILED and reason in record.reason
    for options, reason in (
        ({"regions": tmp_path, "masks": tmp_path}, "--regions and --masks exclude"),
        ({"tissue_geojson": True, "masks": tmp_path}, "--tissue-geojson and --masks exclude"),
        ({"masks": tmp_path / "absent"}, "no file or folder --masks"),
    ):
        with pytest.raises(UserError, match=reason):
            validate(HarvestConfig(wsi_dir=wsi_dir, **options))
