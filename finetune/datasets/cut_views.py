"""Wider views of OCELOT's cell patches, cut from the slides that the patches were cut from.

OCELOT's own tissue patches do not serve: no cell patch is in the centre of one (663 of 663 pairs).
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from tqdm import tqdm

from finetune.datasets.dataset import SPLITS, image_size
from finetune.datasets.layouts import ocelot
from finetune.datasets.pairing import images_in
from finetune.datasets.wider_views import view_beside
from shared.cli import Range, validate
from shared.errors import NOTHING_FAILED, SOME_FAILED, UserError
from shared.files import atomic_path
from shared.wsi.slide import Slide, SlideError
from shared.wsi.slide_files import find_slides


@dataclass(frozen=True, kw_only=True)
class CutViews:
    """Write NAME.fov2.png, NAME.fov4.png, ... beside OCELOT's cell patches, for `finetune --views K`.

    Pixels outside the slide are white. Existing views are kept.
    """

    data: tyro.conf.Positional[Path]
    """Data folder of OCELOT."""
    slides: Path
    """Folder of the TCGA slides that the patches were cut from; its subfolders are searched too."""
    views: Annotated[int, Range(2, 6)] = 2
    """Number of fields of view (the paper's K): the patch's own, twice its width, four times, ..."""


@dataclass(frozen=True)
class ViewPlace:
    """Position of a cell patch in its slide."""

    image: Path
    slide: str
    slide_mpp: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in px of level 0."""

    @classmethod
    def from_metadata(cls, image: Path, pair: Mapping[str, Any]) -> "ViewPlace":
        """Read an entry of `sample_pairs`; raises KeyError, TypeError or ValueError if it is malformed."""
        sides = [float(pair["cell"][name]) for name in ("x_start", "y_start", "x_end", "y_end")]
        left, top, right, bottom = sides
        if not (-math.inf < left < right < math.inf and -math.inf < top < bottom < math.inf):
            raise ValueError(f"the patch ends at ({right:g}, {bottom:g}) and begins at ({left:g}, {top:g})")
        mpp = float(pair["mpp_x"])
        if not 0 < mpp < math.inf:
            raise ValueError(f"mpp_x {mpp:g} is no resolution")
        return cls(image, str(pair["slide_name"]), mpp, (left, top, right, bottom))


def cut_views(config: CutViews) -> int:
    """Cut what is missing; returns 0, or 3 if some slides are missing or cannot be read.

    Raises:
        UserError: the folder is not OCELOT, its metadata lack a patch, or there is no slide.
    """
    validate(config)
    factors = [2**n for n in range(1, config.views)]
    wanted = [place for place in _places(config.data) if _missing(place, factors)]
    slides = find_slides(config.slides)
    failed = 0
    with tqdm(total=len(wanted), unit="patch") as bar:
        for name, places in groupby(sorted(wanted, key=lambda place: place.slide), lambda place: place.slide):
            of_slide = list(places)
            try:
                _cut(_file_of(name, slides, config.slides), of_slide, factors)
            except SlideError as error:
                failed += 1
                tqdm.write(f"failed: {error}", file=sys.stderr)
            bar.update(len(of_slide))
    if failed:
        print(f"{failed} slides failed; fix them and run the command again", file=sys.stderr)
        return SOME_FAILED
    print(f"every patch in {config.data} has {config.views} fields of view; train with --views {config.views}")
    return NOTHING_FAILED


def _places(folder: Path) -> Iterator[ViewPlace]:
    """Yield all cell patches."""
    if not ocelot.matches(folder):
        raise UserError(f"{folder} is not OCELOT ({ocelot.LAYOUT}); needed is its metadata.json")
    metadata = folder / ocelot.METADATA
    pairs = ocelot.sample_pairs(metadata)
    for split in SPLITS:
        images = folder / "images" / split / "cell"
        for stem, image in images_in(images).items() if images.is_dir() else ():
            yield ocelot.of_sample(partial(ViewPlace.from_metadata, image), metadata, pairs, stem)


def _missing(place: ViewPlace, factors: Sequence[int]) -> list[int]:
    """Return the factors without a view, in any format."""
    return [factor for factor in factors if not view_beside(place.image, factor)]


def _file_of(name: str, slides: Sequence[Path], folder: Path) -> Path:
    """Find the file of a slide, whose name may continue after a dot (TCGA's with an identifier)."""
    found = [path for path in slides if path.name == name or path.name.startswith(f"{name}.")]
    if not found:
        raise SlideError(f"{folder} has no slide {name}; download it from TCGA")
    if len(found) > 1:
        raise SlideError(f"{found[0]} and {found[1]} may both be slide {name}; move one of them away")
    return found[0]


def _cut(path: Path, places: Sequence[ViewPlace], factors: Sequence[int]) -> None:
    """Write all views from one slide."""
    with Slide(path, places[0].slide_mpp) as slide:
        for place in places:
            _, _, right, bottom = place.box
            if right > slide.size[0] or bottom > slide.size[1]:
                raise SlideError(
                    f"{path} has {slide.size[0]}x{slide.size[1]} px, but {place.image} was cut up to "
                    f"({right:g}, {bottom:g}); this is another slide, or a smaller copy of it"
                )
            for factor in _missing(place, factors):
                view = place.image.with_name(f"{place.image.stem}.fov{factor}.png")
                with atomic_path(view) as temporary:
                    _read(slide, place, factor).save(temporary, format="PNG")


def _read(slide: Slide, place: ViewPlace, factor: int) -> Image.Image:
    """Read `factor` times the patch's width around its centre, with as many px as the patch."""
    left, top, right, bottom = place.box
    width, height = image_size(place.image)
    mpp = slide.mpp * factor * (right - left) / width
    side_x, side_y = (pixels * mpp / slide.mpp for pixels in (width, height))
    corner = ((left + right - side_x) / 2, (top + bottom - side_y) / 2)
    return slide.read(*corner, width, height, mpp)
