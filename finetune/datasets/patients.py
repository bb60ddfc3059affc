"""Patients of slides, as a CSV names them: the list of a harvest, or one of these two columns."""

from collections.abc import Mapping
from pathlib import Path

from shared.annotations.bounded_files import read_table
from shared.errors import UserError

COLUMNS = ("slide", "patient")


def read_patients(path: Path | None) -> dict[str, str]:
    """Map slides to patients by a CSV with the columns `slide` and `patient`; others are ignored.

    Raises:
        UserError: it cannot be read, or gives a slide two patients.
    """
    patients: dict[str, str] = {}
    try:
        for line, row in read_table(path, COLUMNS) if path else ():
            slide, patient = (row[column].strip() for column in COLUMNS)
            if slide and patient and patients.setdefault(slide, patient) != patient:
                raise UserError(f"{path}, line {line}: {slide} has two patients, {patients[slide]} and {patient}")
    except OSError as error:
        raise UserError(f"--patients {path} cannot be read ({error.strerror}); check the path") from error
    return patients


def patient_of(patients: Mapping[str, str], slide: Path) -> str:
    """Find the patient of a slide that is listed by its name or the end of its path, with or without ending.

    Returns:
        Empty if the list does not name it.
    """
    forms = (slide.parts, slide.with_suffix("").parts)
    keys = ("/".join(parts[-count:]) for count in range(len(slide.parts), 0, -1) for parts in forms)
    return next((patients[key] for key in keys if key in patients), "")
