"""Tiles from images and their listed cells, for layouts whose images are read unchanged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from finetune.datasets.annotations.listed_cells import ListedCell, place_cells
from finetune.datasets.dataset import Tile, image_sizes
from finetune.datasets.description import ORIGIN_OFFSETS, Description
from finetune.datasets.splits import slide_of
from finetune.datasets.wider_views import wider_views

Annotation = TypeVar("Annotation")


def read_tiles(
    folder: Path,
    pairs: Sequence[tuple[Path, Annotation]],
    list_cells: Callable[[Annotation], Iterable[ListedCell]],
    description: Description,
    known_slides: Mapping[str, str] | None = None,
) -> list[Tile]:
    """Make one tile of each image.

    Args:
        folder: The data folder.
        pairs: Images, each with its annotation.
        list_cells: Lists the cells of an annotation.
        description: Its `classes` give the labels by their order; its `slides` override all else.
        known_slides: Image stem -> slide, if the data set states it; else an image is its own slide.

    Raises:
        UserError: an image cannot be decoded, or a row is malformed.
    """
    offset, slides = ORIGIN_OFFSETS[description.origin], known_slides or {}
    return [
        Tile(
            image,
            slide_of(folder, image, description, slides.get(image.stem)),
            size,
            *place_cells(list_cells(annotation), size, description.classes, offset),
            wider=wider_views(image),
        )
        for (image, annotation), size in zip(pairs, image_sizes(image for image, _ in pairs), strict=True)
    ]
