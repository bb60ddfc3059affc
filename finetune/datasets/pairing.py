"""Pairs of images and annotations, matched by name."""

from collections.abc import Iterable
from pathlib import Path

from finetune.datasets.dataset import IMAGE_SUFFIXES
from finetune.datasets.wider_views import annotated_alone
from shared.errors import UserError


def images_in(folder: Path) -> dict[str, Path]:
    """List the images of a folder by stem, without wider views.

    Raises:
        UserError: there are none, two share a stem, or a wider view belongs to none.
    """
    images = annotated_alone(by_stem(path for path in sorted(folder.iterdir()) if _is_image(path)))
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Index files by stem.

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
    """Pair every image with its annotation.

    Args:
        images: By stem, from `images_in`.
        annotations: By stem.
        missing: The annotation that an image should have, with {stem} in it, for the error message.

    Raises:
        UserError: an image or an annotation has no partner.
    """
    for stem in sorted(images.keys() ^ annotations.keys()):
        if stem in images:
            raise UserError(f"{images[stem]} has no annotation {missing.format(stem=stem)}")
        raise UserError(f"{annotations[stem]} belongs to no image in {next(iter(images.values())).parent}")
    return [(images[stem], annotations[stem]) for stem in images]


def require_known_folders(folder: Path, known: Iterable[str]) -> None:
    """Refuse folders that would be left out silently.

    Raises:
        UserError: `folder` has a subfolder that is not among the known ones.
    """
    names = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    if others := sorted(names - set(known)):
        raise UserError(f"{folder / others[0]} is none of {', '.join(known)}; rename it, or move it out")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
