"""Reasons why OpenSlide refuses a TIFF, and the command that converts it."""

import shlex
from pathlib import Path

import tifffile

# Compressions of tiles that OpenSlide's libtiff does not decode, by their TIFF code; JPEG 2000 only as Aperio's.
REFUSED_COMPRESSIONS = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **{6: "old-style JPEG", 34887: "LERC", 34925: "LZMA", 34933: "PNG", 50001: "WebP"},
}
MAGIC = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}  # little and big endian, classic and BigTIFF


def fault_of(path: Path) -> str:
    """Explain why OpenSlide refuses a TIFF and what to do, as a clause to follow the file's name.

    Returns:
        The clause; empty if nothing is known to be wrong.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if _is_cut_short(page, path.stat().st_size):
                return "is a TIFF, but cut short; copy it again"
            fault = _fault_of_layout(page, tiff.byteorder == ">" and not tiff.is_bigtiff)
    except Exception:  # tifffile raises whatever a damaged file leads to
        return "is a TIFF, but cut short or damaged; copy it again"
    return f"{fault}; convert it: {conversion(path)}" if fault else ""


def conversion(path: Path) -> str:
    """Return the vips command that writes a TIFF as tiles of JPEG, which OpenSlide and the direct reader read."""
    name = shlex.quote(str(path))
    target = shlex.quote(str(path.with_name(f"{path.stem}-tiled.tif")))
    return f"vips tiffsave {name} {target} --tile --pyramid --compression jpeg --Q 90 --bigtiff"


def _is_cut_short(page: tifffile.TiffPage, size: int) -> bool:
    """Return whether tiles or strips of a page extend beyond the end of the file."""
    places = zip(page.dataoffsets, page.databytecounts, strict=True)
    return any(offset + count > size for offset, count in places)


def _fault_of_layout(page: tifffile.TiffPage, big_endian: bool) -> str:
    code = int(page.compression)
    if code in REFUSED_COMPRESSIONS:
        name = REFUSED_COMPRESSIONS[code]
        return f"holds tiles of {name} (TIFF compression {code}), which OpenSlide does not decode"
    if not page.is_tiled:
        return "is a TIFF of strips, while OpenSlide reads tiles only"
    if big_endian:
        return "is a big-endian TIFF, which OpenSlide reads as BigTIFF only"
    return ""
