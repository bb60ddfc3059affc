"""Endings of a slide's output files, after NAME and a dot, and recognition of pictures among them."""

from pathlib import Path

# By --compress.
GEOJSON = {"no": "geojson", "zip": "zip", "gzip": "geojson.gz"}
CSV, PARQUET, REPORT, SUMMARY = "csv", "parquet", "html", "summary.json"
# Written for a slide that fails unexpectedly.
FAILURE = "failure.log"
DENSITY, REGIONS = "density.png", "regions.png"
PICTURES = (DENSITY, REGIONS)
# The summary is written last: if it exists, all others do.
ENDINGS = (*GEOJSON.values(), CSV, PARQUET, *PICTURES, REPORT, SUMMARY)


def file_of(stem: Path, ending: str) -> Path:
    """Path of NAME.ending."""
    return stem.with_name(f"{stem.name}.{ending}")


def work_folder(stem: Path) -> Path:
    """Hidden folder of a slide's cells, during the prediction and afterwards."""
    return stem.with_name(f".{stem.name}.cells")


def drawn_by_prediction(path: Path) -> bool:
    """Recognise a picture of an earlier prediction by the files beside it, so that it is not predicted itself."""
    stems = [path.with_name(path.name.removesuffix(f".{ending}")) for ending in PICTURES]
    return any(stem != path and (file_of(stem, SUMMARY).is_file() or work_folder(stem).is_dir()) for stem in stems)
