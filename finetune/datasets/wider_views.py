"""Wider views of annotated images, for several fields of view (the paper's mFoV).

NAME.fov2.png, NAME.fov4.png, ... beside NAME.png have as many px and show 2, 4, ... times the width and height
around the same centre. Cells are annotated in NAME.png only.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.datasets.dataset import IMAGE_SUFFIXES, Tile, image_sizes
from shared.errors import UserError

VIEW = re.compile(r"(?P<image>.+)\.fov(?P<factor>\d+)")


def annotated_alone(images: Mapping[str, Path]) -> dict[str, Path]:
    """Return the images, by stem, that are not wider views of others.

    Raises:
        UserError: a wider view has no image, or its factor is not a power of two.
    """
    alone = {stem: path for stem, path in images.items() if not VIEW.fullmatch(stem)}
    for stem in sorted(images.keys() - alone.keys()):
        _check(images[stem], alone)
    return alone


def wider_views(image: Path) -> tuple[Path, ...]:
    """List the wider views beside an annotated image, widest first."""
    views: list[Path] = []
    while view := view_beside(image, 2 ** (len(views) + 1)):
        views.insert(0, view)
    return tuple(views)


def view_beside(image: Path, factor: int) -> Path | None:
    """Find the view that shows `factor` times the width, in any image format; None if it is missing."""
    suffixes = (image.suffix, *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    paths = (image.with_name(f"{image.stem}.fov{factor}{suffix}") for suffix in suffixes)
    return next((path for path in paths if path.exists()), None)


def require_views(tiles: Sequence[Tile], count: int) -> None:
    """Require `count` fields of view of one size for every tile, its own included.

    Raises:
        UserError: a view is missing, damaged or of another size.
    """
    if count == 1:
        return
    for tile in tiles:
        if len(tile.wider) < count - 1:
            raise UserError(_missing(tile, count))
    wider = [(path, tile) for tile in tiles for path in tile.views(count)[:-1]]
    sizes = image_sizes(path for path, _ in wider)
    for (path, tile), (width, height) in zip(wider, sizes, strict=True):
        own_width, own_height = (side * tile.reduction for side in tile.size)
        if (width, height) != (own_width, own_height):
            raise UserError(
                f"{path} has {width}x{height} px, but {tile.image} {own_width}x{own_height}; write every view "
                "with the size of the annotated image"
            )


def _check(view: Path, images: Mapping[str, Path]) -> None:
    parts = VIEW.fullmatch(view.stem)
    assert parts is not None
    factor = int(parts["factor"])
    if factor < 2 or factor & (factor - 1):
        raise UserError(f"{view} is not a wider view: the number after .fov must be 2, 4, 8, ...; rename it")
    if parts["image"] not in images:
        raise UserError(f"{view} is a wider view of no image: {parts['image']} is not beside it; remove it")


def _missing(tile: Tile, count: int) -> str:
    factor = 2 ** (len(tile.wider) + 1)
    return (
        f"{tile.image} lacks its wider view {tile.image.stem}.fov{factor}.png, which {count} fields of view need: "
        f"as many px, {factor} times the width and height around the same centre (for OCELOT, "
        "`python -m finetune.datasets cut-views` writes it)"
    )
