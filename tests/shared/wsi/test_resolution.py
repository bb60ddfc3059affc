"""um/px of level 0: the order of trust, and numbers that cannot be."""

import pytest

from shared.wsi.resolution import UnknownResolutionError, resolve

OPENSLIDE = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
TIFF = {"tiff.XResolution": "40000", "tiff.YResolution": "40000", "tiff.ResolutionUnit": "centimeter"}


def ome(size: str, unit: str | None) -> dict[str, str]:
    """Return a description as Bio-Formats writes it: the slide, and a label with larger pixels."""
    units = "" if unit is None else f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    pixels = f'<Pixels ID="Pixels:0" PhysicalSizeX="{size}" {units} PhysicalSizeY="{size}" SizeX="9">'
    label = '<Pixels ID="Pixels:1" PhysicalSizeX="9" PhysicalSizeXUnit="mm" PhysicalSizeY="9">'
    return {"tiff.ImageDescription": f"<OME><Image>{pixels}</Pixels></Image><Image>{label}</Pixels></Image></OME>"}


OME_SIZES = (
    ("0.25", None),
    ("0.25", "\u00b5m"),
    ("0.25", "\u03bcm"),
    ("0.25", "&#181;m"),
    ("250", "nm"),
    ("2.5e-4", "mm"),
    ("0.000025", "cm"),
    ("2500", "\u00c5"),
)


def test_the_users_word_comes_first():
    assert resolve(OPENSLIDE, override=0.5).mpp == 0.5
    assert resolve({}, override=0.5).source == "override"


@pytest.mark.parametrize(
    ("properties", "mpp", "source"),
    [
        (OPENSLIDE | {"aperio.MPP": "0.5"}, 0.25, "openslide.mpp-x"),
        ({"aperio.MPP": "0.5"} | TIFF, 0.5, "aperio.MPP"),
        ({"aperio.MPP": "0,499"}, 0.499, "aperio.MPP"),
        ({"tiff.ImageDescription": "Scanner X|MPP = 0.3450|Date"}, 0.345, "MPP in the description"),
        ({"tiff.ImageDescription": 'PhysicalSizeX="0.22" PhysicalSizeY="0.22"'}, 0.22, "OME PhysicalSize"),
        *((ome(*sizes), 0.25, "OME PhysicalSize") for sizes in OME_SIZES),
        (TIFF, 0.25, "TIFF resolution tags"),
        (TIFF | {"tiff.ResolutionUnit": "inch"}, 0.635, "TIFF resolution tags"),
        ({"openslide.mpp-x": "352.8", "aperio.MPP": "0.25"}, 0.25, "aperio.MPP"),
    ],
)
def test_the_first_plausible_statement_counts(properties, mpp, source):
    resolution = resolve(properties)
    assert resolution.mpp == pytest.approx(mpp)
    assert resolution.source == source
    assert not resolution.warning


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"openslide.mpp-x": "unknown"},
        {"openslide.mpp-x": "0"},
        {"openslide.objective-power": "40"},
        TIFF | {"tiff.ResolutionUnit": "none"},
        ome("1.0", "pixel"),
        ome("1.0", "reference frame"),
        ome("0.25", "furlong"),
    ],
)
def test_silence(properties):
    with pytest.raises(UnknownResolutionError, match="does not state"):
        resolve(properties)


@pytest.mark.parametrize("mpp", ["352.8", "0.005"])
def test_impossible_numbers_are_named(mpp):
    with pytest.raises(UnknownResolutionError, match=rf"impossible resolution .{mpp} um/px"):
        resolve({"openslide.mpp-x": mpp, "openslide.mpp-y": mpp})


def test_the_objective_only_if_asked_and_with_a_warning():
    resolution = resolve({"openslide.objective-power": "20"}, trust_objective=True)
    assert resolution.mpp == 0.5
    assert "guessed" in resolution.warning


def test_oblong_pixels_are_said():
    assert "0.25 x 0.27" in resolve({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.27"}).warning
    assert not resolve({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}).warning
