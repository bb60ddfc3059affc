"""Annotation files given for slides: one file for one slide, or a folder with one of each slide's name."""

from pathlib import Path

from shared.annotations.qupath import SUFFIXES
from shared.errors import UserError


def annotation_for(given: Path | None, name: Path, several: bool, option: str) -> Path | None:
    """Find the annotations of a slide among those given with an option.

    Args:
        given: File or folder.
        name: Path of the slide's annotations below the folder, without ending.
        several: True if there are other slides, for which one file does not serve.
        option: Name of the option, for messages.

    Returns:
        None if nothing is given, or nothing for this slide.

    Raises:
        UserError: one file for several slides.
    """
    if given is None:
        return None
    if given.is_file():
        if several:
            raise UserError(f"--{option} {given} is one file for several slides; give a folder of NAME.geojson")
        return given
    paths = [given / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)
