"""Names of the files of a harvest, below its output folder."""

from pathlib import Path

REPORT, SLIDES_CSV = "report.html", "slides.csv"
CONTACT_SHEET, REJECTED_SHEET = "contact_sheet.png", "rejected.png"
THUMBNAILS, REJECTED = "thumbnails", "rejected"  # folders


def tar_path(out: Path, source_id: str) -> Path:
    """Where a slide's patches lie."""
    return out / "slides" / f"{source_id}.tar"


def near_misses_path(out: Path, slide_id: str) -> Path:
    """Where a slide's near misses lie."""
    return out / REJECTED / f"{slide_id}.tar"
