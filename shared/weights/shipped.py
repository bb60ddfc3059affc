"""The detector that comes with this package, by its name instead of a path; `nuclei.md` describes its training."""

from pathlib import Path

NUCLEI = "nuclei"
NUCLEI_FILE = Path(__file__).with_name("nuclei.safetensors")


def shipped_or_given(path: str | Path) -> Path:
    """Return the shipped file for its name, unless a file or folder has that name; any other path as it is."""
    path = Path(path)
    return NUCLEI_FILE if str(path) == NUCLEI and not path.exists() else path
