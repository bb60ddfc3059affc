"""Area of a slide to harvest: tissue, regions annotated in QuPath, or a mask; tissue as GeoJSON for QuPath."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.slide_store.file_names import tissue_path
from shared.annotations.polygons import PolygonIndex, merge, shifted, subtract
from shared.annotations.qupath import read_regions
from shared.annotations.slide_annotations import annotation_for
from shared.errors import UserError
from shared.files import atomic_path, keep_aside
from shared.wsi.image_source import bounds_corner
from shared.wsi.slide import Slide
from shared.wsi.tissue import Tissue, find_tissue


def with_regions(entry: SlideEntry, config: HarvestConfig, several: bool) -> SlideEntry:
    """Add the file of `--regions` or `--masks` to a slide, and its content to what decides the slide's patches.

    Raises:
        UserError: there is one file for several slides.
    """
    if config.masks is not None:
        return _with_mask(entry, config.masks, several)
    if config.regions is None:
        return entry
    names = (Path(entry.name).with_suffix(""), Path(entry.name))
    found = [annotation_for(config.regions, name, several, "regions") for name in names]
    path = next((path for path in found if path is not None), None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else None
    settings = {**entry.settings, "regions": digest, "region_class": list(config.region_class)}
    return dataclasses.replace(entry, regions=path, settings=settings)


def _with_mask(entry: SlideEntry, given: Path, several: bool) -> SlideEntry:
    """Find the mask of a slide.

    Raises:
        UserError: there is one file for several slides.
    """
    if given.is_file() and several:
        raise UserError(f"--masks {given} is one file for several slides; give a folder of NAME.png")
    names = (Path(entry.name).with_suffix(".png"), Path(f"{entry.name}.png"))
    paths = [given] if given.is_file() else [given / name for name in names]
    path = next((path for path in paths if path.is_file()), None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else None
    return dataclasses.replace(entry, regions=path, settings={**entry.settings, "masks": digest})


def search_area(slide: Slide, entry: SlideEntry, config: HarvestConfig) -> Tissue:
    """Return the tissue of a slide, or the regions or mask given for it in place of the tissue mask.

    Raises:
        UserError: the slide or its regions cannot be read, or it has none.
    """
    tissue = find_tissue(slide)
    if config.masks is not None:
        return dataclasses.replace(tissue, mask=_painted(slide, entry, config.masks, tissue.mask.shape))
    if config.regions is None:
        return tissue
    if entry.regions is None:
        wanted = config.regions / Path(entry.name).with_suffix(".geojson")
        raise UserError(f"there is no {wanted} with the regions of this slide (--regions); add it")
    objects = read_regions(entry.regions).shifted(*bounds_corner(slide))
    regions, ignored = objects.choose(config.region_class)
    if not regions:
        names = ", ".join(sorted({region.name or "(no class)" for region in objects.regions})) or "none"
        raise UserError(f"{entry.regions} has no region to harvest (--region-class); its regions: {names}")
    index = PolygonIndex(subtract(merge([region.polygon for region in regions]), ignored))
    height, width = tissue.mask.shape
    mask_HW = index.mask(np.zeros(2), tissue.mpp / slide.mpp, height, width)
    if not mask_HW.any():
        raise UserError(f"the regions of {entry.regions} are outside {slide.path}; give those drawn on this slide")
    return dataclasses.replace(tissue, mask=mask_HW)


def _painted(slide: Slide, entry: SlideEntry, given: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a mask at the size of the tissue mask: bool (height, width).

    Raises:
        UserError: there is none, it is no image, has another shape than the slide, or is all black.
    """
    if entry.regions is None:
        wanted = given / Path(entry.name).with_suffix(".png")
        raise UserError(f"there is no {wanted} with the mask of this slide (--masks); add it")
    try:
        with Image.open(entry.regions) as image:
            width, height = image.size
            values = np.asarray(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{entry.regions} cannot be read as a mask ({error}); write it as a PNG") from error
    if abs(width / height - slide.size[0] / slide.size[1]) > width / height * (1 / width + 1 / height):
        raise UserError(
            f"{entry.regions} has {width}x{height} px, which is not the shape of {slide.path} "
            f"({slide.size[0]}x{slide.size[1]} px); a mask shows the whole slide"
        )
    if values.ndim == 3:  # transparent is not harvested
        opaque = values[..., -1:] if values.shape[2] in (2, 4) else np.ones_like(values[..., :1])
        values = (values[..., :3] if values.shape[2] >= 3 else values[..., :1]).max(axis=2) * (opaque[..., 0] > 0)
    small = Image.fromarray(values > 0).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    if not (mask_HW := np.asarray(small)).any():
        raise UserError(f"{entry.regions} is all black; paint what is to be harvested")
    return mask_HW


def save_tissue(slide: Slide, entry: SlideEntry, config: HarvestConfig, tissue: Tissue) -> None:
    """Write the tissue mask as annotations of class `Tissue` for QuPath, which `--regions` reads back."""
    left, top = bounds_corner(slide)
    outlines = [shifted(outline, -left, -top) for outline in _outlines(tissue.mask, tissue.mpp / slide.mpp)]
    properties = {"objectType": "annotation", "classification": {"name": "Tissue", "color": [0, 158, 115]}}
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(outline), "properties": properties}
        for outline in outlines
    ]
    content = json.dumps({"type": "FeatureCollection", "features": features})
    path = tissue_path(config.out, entry.name)
    if path.exists() and path.read_text(encoding="utf-8") != content:  # it may have been corrected
        keep_aside(path)
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _outlines(mask_HW: np.ndarray, px: float) -> list[shapely.Polygon]:
    """Trace a mask whose pixels are `px` px of level 0 wide: polygons along the edges of its pixels."""
    steps = np.diff(np.pad(mask_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(steps == 1)
    _, end = np.nonzero(steps == -1)
    united = shapely.union_all(shapely.box(start * px, row * px, end * px, (row + 1) * px))
    return [part for part in shapely.get_parts([united]).tolist() if part.area]
