"""How the names of a slide's files end, after NAME and a dot; and which pictures a prediction has drawn itself."""

from pathlib import Path

# By --compress.
GEOJSON = {"no": "geojson", "zip": "zip", "gzip": "geojson.gz"}
CSV, PARQUET, REPORT, SUMMARY = "csv", "parquet", "html", "summary.json"
DENSITY, REGIONS = "density.png", "regions.png"
PICTURES = (DENSITY, REGIONS)
# The summary comes last: where it is, all else was written.
ENDINGS = (*GEOJSON.values(), CSV, PARQUET, *PICTURES, REPORT, SUMMARY)


def file_of(stem: Path, ending: str) -> Path:
    """NAME.ending."""
    return stem.with_name(f"{stem.name}.{ending}")


def work_folder(stem: Path) -> Path:
    """Where a slide's cells are kept while they are found, and afterwards."""
    return stem.with_name(f".{stem.name}.cells")


def drawn_by_prediction(path: Path) -> bool:
    """Whether a file is a picture of cells, known by what lies beside it; cells are not looked for in it again."""
    stems = [path.with_name(path.name.removesuffix(f".{ending}")) for ending in PICTURES]
    return any(stem != path and (file_of(stem, SUMMARY).is_file() or work_folder(stem).is_dir()) for stem in stems)
