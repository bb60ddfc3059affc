"""The plain layout: `{train,val,test}/{images,points}` or a flat `{images,points}`, one CSV an image."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune.datasets.annotated_data import SPLITS, AnnotatedData, Tile, image_size, split_by_slide
from finetune.datasets.cells_csv import read_cells, values_in
from finetune.datasets.description import NAME, ORIGIN_OFFSETS, Description, checked
from shared.command_line import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
# The paper's shares for data sets without published splits (Experimental Setup).
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def is_points(folder: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / "images").is_dir() and (root / "points").is_dir() for root in _roots(folder).values())


def load_points(folder: Path, description: Description) -> AnnotatedData:
    """Read every annotation, and every image once, to find a damaged one now rather than in an hour.

    Raises:
        UserError: no resolution; a folder, image or annotation that belongs to nothing; a slide in two
            splits; a bad row; an image that cannot be decoded.
    """
    mpp = checked(folder, description)
    roots = {name: root for name, root in _roots(folder).items() if (root / "images").is_dir()}
    _refuse_other_folders(folder, roots)
    pairs = {name: _pairs(root) for name, root in roots.items()}
    _refuse_strangers(folder, [image for each in pairs.values() for image, _ in each], description)
    values = description.classes or values_in([points for each in pairs.values() for _, points in each])
    tiles = {name: _read_tiles(folder, each, values, description) for name, each in pairs.items()}
    splits = _splits(folder, tiles, description)
    _refuse_shared_slides(folder, splits)
    return AnnotatedData(folder, mpp, tuple(values), splits)


def _roots(folder: Path) -> dict[str, Path]:
    """Folders that hold images and points: one per split, or the data folder itself under ''."""
    split = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    return split or {"": folder}


def _refuse_other_folders(folder: Path, roots: Mapping[str, Path]) -> None:
    """Images beside the folders that are read would be left out without a word."""
    beside = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for path in beside:
        if path not in roots.values() and (path / "images").is_dir():
            raise UserError(
                f"{path / 'images'} is not read, because {folder} is divided into {', '.join(roots)}; "
                f"move it out, or into one of {', '.join(SPLITS)}"
            )


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Images with their annotations."""
    images = _by_stem(path for path in sorted((root / "images").iterdir()) if _is_image(path))
    points = _by_stem(sorted((root / "points").glob("*.csv")))
    for stem in sorted(images.keys() ^ points.keys()):
        if stem in images:
            raise UserError(
                f"{images[stem]} has no annotation {root / 'points' / stem}.csv (empty but for x,y,class?)"
            )
        raise UserError(f"{points[stem]} belongs to no image in {root / 'images'}")
    if not images:
        raise UserError(f"{root / 'images'} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [(images[stem], points[stem]) for stem in images]


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path.name} share one annotation; rename one of them")
        found[path.stem] = path
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _refuse_strangers(folder: Path, images: list[Path], description: Description) -> None:
    """An image in `slides` or `splits` that does not exist is a slip of the pen, and its slide would leak."""
    known = {_key(folder, image) for image in images}
    for field, mapping in (("slides", description.slides), ("splits", description.splits)):
        if strangers := sorted(mapping.keys() - known):
            raise UserError(
                f'"{field}" in {folder / NAME} names {strangers[0]}, which is no image there; '
                f"write paths from that folder on, as {min(known)}"
            )
    if description.splits and (rest := sorted(known - description.splits.keys())):
        raise UserError(f'"splits" in {folder / NAME} leaves out {rest[0]}; add it, or remove the image')


def _key(folder: Path, image: Path) -> str:
    return image.relative_to(folder).as_posix()


def _read_tiles(
    folder: Path, pairs: list[tuple[Path, Path]], values: Mapping[str, str], description: Description
) -> list[Tile]:
    offset = ORIGIN_OFFSETS[description.origin]
    with ThreadPoolExecutor() as threads:
        sizes = threads.map(image_size, [image for image, _ in pairs])
        return [
            Tile(
                image,
                description.slides.get(_key(folder, image), _key(folder, image)),
                size,
                *read_cells(points, size, values, offset),
            )
            for (image, points), size in zip(pairs, sizes, strict=True)
        ]


def _splits(folder: Path, tiles: Mapping[str, list[Tile]], description: Description) -> dict[str, list[Tile]]:
    """Splits that hold tiles, in order: those of `dataset.json`, else the folders, else dealt out by slide."""
    if description.splits:
        everything = [tile for each in tiles.values() for tile in each]
        splits = {
            name: [tile for tile in everything if description.splits[_key(folder, tile.image)] == name]
            for name in SPLITS
        }
    else:
        splits = _dealt(tiles, description.val)
    return {name: splits[name] for name in SPLITS if splits.get(name)}


def _dealt(tiles: Mapping[str, list[Tile]], val: frozenset[str]) -> dict[str, list[Tile]]:
    """A flat folder dealt out 6:2:2 by slide; else its folders, with a fifth of train where there is no val."""
    if "" in tiles:
        return split_by_slide(tiles[""], SHARES)
    train = tiles.get("train", [])
    if val:
        chosen = [tile for tile in train if tile.image.stem in val]
        rest = [tile for tile in train if tile.image.stem not in val]
        return {**tiles, "train": rest, "val": chosen}
    if train and "val" not in tiles:
        return {**tiles, **split_by_slide(train, {"train": 0.8, "val": 0.2})}
    return dict(tiles)


def _refuse_shared_slides(folder: Path, splits: Mapping[str, list[Tile]]) -> None:
    """A net that has seen a slide is not tested by its other tiles."""
    split_of: dict[str, str] = {}
    for name, tiles in splits.items():
        for tile in tiles:
            other = split_of.setdefault(tile.slide, name)
            if other != name:
                raise UserError(
                    f"{folder} has tiles of slide {tile.slide!r} in both {other} and {name} "
                    f"(one is {tile.image}); move all tiles of a slide into one split"
                )
