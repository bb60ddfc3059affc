"""Names of a harvest's files below its output folder."""

from pathlib import Path

REPORT, SLIDES_CSV = "report.html", "slides.csv"
CONTACT_SHEET, REJECTED_SHEET = "contact_sheet.png", "rejected.png"
SLIDES, THUMBNAILS, REJECTED, JOBS, TISSUE = "slides", "thumbnails", "rejected", "jobs", "tissue"  # folders


def tar_path(out: Path, slide_id: str) -> Path:
    """Return the path of a slide's patches."""
    return out / SLIDES / f"{slide_id}.tar"


def record_path(out: Path, slide_id: str) -> Path:
    """Return the path of a slide's record."""
    return out / SLIDES / f"{slide_id}.json"


def near_misses_path(out: Path, slide_id: str) -> Path:
    """Return the path of a slide's near misses."""
    return out / REJECTED / f"{slide_id}.tar"


def thumbnail_path(out: Path, slide_id: str) -> Path:
    """Return the path of a slide's thumbnail."""
    return out / THUMBNAILS / f"{slide_id}.jpg"


def tissue_path(out: Path, name: str) -> Path:
    """Return the path of a slide's tissue mask; `name` is the slide's path below --wsi-dir."""
    return out / TISSUE / f"{name}.geojson"


def failure_log_path(out: Path, slide_id: str) -> Path:
    """Return the path of the traceback of an unexpected failure."""
    return out / f"failure-{slide_id}.log"
