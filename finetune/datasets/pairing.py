"""Images and the annotations that belong to them, by their names."""

from collections.abc import Iterable
from pathlib import Path

from finetune.datasets.dataset import IMAGE_SUFFIXES
from finetune.datasets.wider_views import annotated_alone
from shared.errors import UserError


def images_in(folder: Path) -> dict[str, Path]:
    """The images of a folder by stem, without wider views of them.

    Raises:
        UserError: there are none, or two share a stem; a wider view belongs to none.
    """
    images = annotated_alone(by_stem(path for path in sorted(folder.iterdir()) if _is_image(path)))
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by stem.

    Raises:
        UserError: two share one.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path.name} share one name; rename or remove one of them")
        found[path.stem] = path
    return found


def paired(images: dict[str, Path], annotations: dict[str, Path], missing: str) -> list[tuple[Path, Path]]:
    """Every image with its annotation.

    Args:
        images: By stem, from `images_in`.
        annotations: By stem.
        missing: The annotation that an image should have, with {stem} in it, for the error message.

    Raises:
        UserError: one of them is alone.
    """
    for stem in sorted(images.keys() ^ annotations.keys()):
        if stem in images:
            raise UserError(f"{images[stem]} has no annotation {missing.format(stem=stem)}")
        raise UserError(f"{annotations[stem]} belongs to no image in {next(iter(images.values())).parent}")
    return [(images[stem], annotations[stem]) for stem in images]


def refuse_other_folders(folder: Path, known: Iterable[str]) -> None:
    """Images in a folder that is not read would be left out without a word.

    Raises:
        UserError: `folder` has a folder that is not among the known ones.
    """
    names = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    if others := sorted(names - set(known)):
        raise UserError(f"{folder / others[0]} is none of {', '.join(known)}; rename it, or move it out")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
