"""Resolution of a slide: um/px of level 0 and their source."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

# um/px accepted from files and from every --slide-mpp. Scanners produce 0.1 to about 8; files exist that state
# 352.8 (72 ppi) or 0.005, and people give 40 (the objective) or 0.00025 (mm).
MPP_RANGE = (0.05, 20.0)
# A larger relative difference of the two sides of a pixel is reported.
ANISOTROPY = 0.05
# um per TIFF resolution unit.
UNITS = {"centimeter": 1e4, "inch": 2.54e4}
# 40x is 0.25 um/px, 20x is 0.5, by convention of the scanner vendors.
UM_PX_TIMES_POWER = 10.0
NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
APERIO_MPP = re.compile(rf"\bMPP\s*=\s*{NUMBER}")
# um per unit of OME-XML's PhysicalSize. "pixel" and "reference frame", which it also allows, are no lengths.
OME_UNITS = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "in": 2.54e4}
OME_UNITS |= {"\u00b5m": 1.0, "\u03bcm": 1.0, "\u00c5": 1e-4}  # the micro sign, Greek mu, angstrom


class UnknownResolutionError(ValueError):
    """No usable statement of the resolution; the message gives the unusable ones."""


@dataclass(frozen=True)
class Resolution:
    """um/px of level 0 (mean of both sides), their source, and a warning if they are doubtful."""

    mpp: float
    source: str
    warning: str = ""


def resolve(
    properties: Mapping[str, str], override: float | None = None, trust_objective: bool = False
) -> Resolution:
    """Return the first plausible resolution: override, OpenSlide's, the vendor's, the TIFF's.

    Args:
        properties: OpenSlide's properties.
        override: um/px given by the user; accepted unchecked.
        trust_objective: Fall back on the objective's power, a mere convention.

    Raises:
        UnknownResolutionError: no resolution is stated, or only implausible ones.
    """
    if override is not None:
        return Resolution(override, "override")
    absurd = []
    for source, (x, y) in _stated(properties, trust_objective).items():
        if not all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (x, y)):
            absurd.append(f"{x:.4g} um/px from {source}")
            continue
        return Resolution((x + y) / 2, source, _warning(x, y, source))
    if absurd:
        raise UnknownResolutionError(f"states an impossible resolution ({', '.join(absurd)})")
    raise UnknownResolutionError("does not state its resolution")


def _stated(properties: Mapping[str, str], trust_objective: bool) -> dict[str, tuple[float, float]]:
    """Return every resolution that the file states, as um/px in x and y, most trusted first."""
    found = {
        "openslide.mpp-x": _pair(properties, "openslide.mpp-x", "openslide.mpp-y"),
        "aperio.MPP": _pair(properties, "aperio.MPP", "aperio.MPP"),
    }
    description = properties.get("tiff.ImageDescription", "")
    mpp = _number(stated[1]) if (stated := APERIO_MPP.search(description)) else None
    found["MPP in the description"] = (mpp, mpp) if mpp else None
    found["OME PhysicalSize"] = _ome_size(description)
    found["TIFF resolution tags"] = _tiff_tags(properties)
    power = _number(properties.get("openslide.objective-power"))
    if trust_objective and power:
        found["objective power"] = (UM_PX_TIMES_POWER / power, UM_PX_TIMES_POWER / power)
    return {source: pair for source, pair in found.items() if pair is not None}


def _warning(x: float, y: float, source: str) -> str:
    if source == "objective power":
        return "the resolution is guessed from the objective's power"
    if abs(x - y) > ANISOTROPY * min(x, y):
        return f"pixels are not square: {x:.4g} x {y:.4g} um"
    return ""


def _pair(properties: Mapping[str, str], key_x: str, key_y: str) -> tuple[float, float] | None:
    x, y = _number(properties.get(key_x)), _number(properties.get(key_y))
    return (x, y or x) if x else None


def _ome_size(description: str) -> tuple[float, float] | None:
    """Return PhysicalSizeX and PhysicalSizeY of the first image in um/px; None unless both are lengths."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description)
    text = html.unescape(pixels[0] if pixels else description)
    attributes = dict(re.findall(r"""\b(PhysicalSize\w+)\s*=\s*["']([^"']*)["']""", text))
    sizes = []
    for axis in "XY":
        size = _number(attributes.get(f"PhysicalSize{axis}"))
        unit = OME_UNITS.get(attributes.get(f"PhysicalSize{axis}Unit", "um").strip())
        if not size or not unit:
            return None
        sizes.append(size * unit)
    return sizes[0], sizes[1]


def _tiff_tags(properties: Mapping[str, str]) -> tuple[float, float] | None:
    unit = UNITS.get(properties.get("tiff.ResolutionUnit", ""))
    x, y = _number(properties.get("tiff.XResolution")), _number(properties.get("tiff.YResolution"))
    return (unit / x, unit / y) if unit and x and y else None


def _number(text: str | None) -> float | None:
    """Return a positive number, or None: some files hold words or zero. A comma is read as a point."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
