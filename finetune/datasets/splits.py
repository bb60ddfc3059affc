"""Splits of tiles: as listed in dataset.json, as in folders, or drawn by patient or slide."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.datasets.dataset import SPLITS, AnnotatedData, Tile
from finetune.datasets.description import NAME, Description
from shared.errors import UserError

# The paper's shares for data sets without published splits (Experimental Setup).
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def slide_of(folder: Path, image: Path, description: Description, default: str | None = None) -> str:
    """Return the key of an image's slide; an image without a stated slide is its own."""
    key = _key(folder, image)
    return description.slides.get(key, default or key)


def arrange(folder: Path, tiles: Mapping[str, list[Tile]], description: Description) -> dict[str, list[Tile]]:
    """Divide tiles into splits, in order and without empty ones.

    Args:
        folder: The data folder, from which `dataset.json` names images.
        tiles: Tiles by the split of their folder; under '' if folders state none.
        description: Its `splits` override the folders; its `val` names training tiles.

    Raises:
        UserError: the description names an image or slide that does not exist or leaves one out, or a patient or
            slide is in two splits.
    """
    tiles = {name: _with_patients(each, description.patients) for name, each in tiles.items()}
    everything = [tile for each in tiles.values() for tile in each]
    if unknown := sorted(description.patients.keys() - {tile.slide for tile in everything}):
        raise UserError(f'"patients" in {folder / NAME} names {unknown[0]}, which is no slide there; correct it')
    _refuse_strangers(folder, {_key(folder, tile.image) for tile in everything}, description)
    splits = _listed(folder, everything, description) if description.splits else _dealt(tiles, description.val)
    splits = {name: splits[name] for name in SPLITS if splits.get(name)}
    _refuse_shared_slides(folder, splits)
    return splits


def split_by_slide(tiles: Sequence[Tile], shares: dict[str, float], seed: int = 0) -> dict[str, list[Tile]]:
    """Draw splits of whole patients (of slides, if none is stated) whose tile counts come close to the shares.

    The order of the patients is a hash of their keys and the seed: adding one moves few of the others.
    """
    groups = sorted({tile.group for tile in tiles}, key=lambda key: _hash(key, seed))
    counts = Counter(tile.group for tile in tiles)
    dealt: dict[str, set[str]] = {name: set() for name in shares}
    filled = dict.fromkeys(shares, 0)
    for key in groups:
        neediest = max(shares, key=lambda name: shares[name] * len(tiles) - filled[name])
        dealt[neediest].add(key)
        filled[neediest] += counts[key]
    return {name: [tile for tile in tiles if tile.group in keys] for name, keys in dealt.items()}


def hold_out(data: AnnotatedData, fold: int, folds: int) -> AnnotatedData:
    """Make the tiles of one fold the test tiles, and those of the next the validation tiles.

    Patients or slides of the training and validation split are divided; the data's own test tiles are not used.

    Args:
        data: Annotated tiles.
        fold: 1..folds.
        folds: Number of folds.

    Raises:
        UserError: there are fewer patients or slides than folds.
    """
    tiles = [*data.splits.get("train", []), *data.splits.get("val", [])]
    if (groups := len({tile.group for tile in tiles})) < folds:
        raise UserError(f"{data.folder} has training tiles of {groups} slides, too few for --folds {folds}")
    parts = list(split_by_slide(tiles, {str(part): 1 / folds for part in range(folds)}).values())
    test, val = parts.pop(fold - 1), parts.pop((fold - 1) % (folds - 1))
    train = [tile for part in parts for tile in part]
    return dataclasses.replace(data, splits={"train": train, "val": val, "test": test})


def _with_patients(tiles: Sequence[Tile], patients: Mapping[str, str]) -> list[Tile]:
    return [dataclasses.replace(tile, patient=patients.get(tile.slide, "")) for tile in tiles]


def _hash(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _key(folder: Path, image: Path) -> str:
    return image.relative_to(folder).as_posix()


def _listed(folder: Path, tiles: Sequence[Tile], description: Description) -> dict[str, list[Tile]]:
    """Divide tiles as listed in `dataset.json`."""
    return {
        name: [tile for tile in tiles if description.splits[_key(folder, tile.image)] == name] for name in SPLITS
    }


def _dealt(tiles: Mapping[str, list[Tile]], val: frozenset[str]) -> dict[str, list[Tile]]:
    """Keep the splits of folders; without any, draw 6:2:2 by slide.

    Without a folder `val`, it is made of the training tiles that `val` names, or of a fifth of their slides.
    """
    if "" in tiles:
        return split_by_slide(tiles[""], SHARES)
    train = tiles.get("train", [])
    if val and "val" not in tiles:
        chosen = [tile for tile in train if tile.image.stem in val]
        rest = [tile for tile in train if tile.image.stem not in val]
        return {**tiles, "train": rest, "val": chosen}
    if train and "val" not in tiles:
        return {**tiles, **split_by_slide(train, {"train": 0.8, "val": 0.2})}
    return dict(tiles)


def _refuse_strangers(folder: Path, known: set[str], description: Description) -> None:
    """Refuse entries for images that do not exist: with a misspelt name, the slide would leak."""
    for field, mapping in (("slides", description.slides), ("splits", description.splits)):
        if strangers := sorted(mapping.keys() - known):
            raise UserError(
                f'"{field}" in {folder / NAME} names {strangers[0]}, which is not an image there; '
                f"write paths relative to that folder, as {min(known)}"
            )
    if description.splits and (rest := sorted(known - description.splits.keys())):
        raise UserError(f'"splits" in {folder / NAME} leaves out {rest[0]}; add it, or remove the image')


def _refuse_shared_slides(folder: Path, splits: Mapping[str, list[Tile]]) -> None:
    """Refuse tiles of one patient or slide in several splits: scores would be too good."""
    split_of: dict[str, str] = {}
    for name, tiles in splits.items():
        for tile in tiles:
            other = split_of.setdefault(tile.group, name)
            if other != name:
                kind = "patient" if tile.patient else "slide"
                raise UserError(
                    f"{folder} has tiles of {kind} {tile.group!r} in both {other} and {name} "
                    f"(one is {tile.image}); move all tiles of a {kind} into one split"
                )
