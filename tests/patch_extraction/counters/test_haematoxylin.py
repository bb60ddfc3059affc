"""The classical counter against known cells of sample tissue and against annotated fields."""

import csv
import decimal
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve1d, gaussian_filter, maximum_filter
from scipy.optimize import linear_sum_assignment

from patch_extraction.counters.base import HaematoxylinCounter
from patch_extraction.counters.haematoxylin import DENSITIES
from shared.samples.specimen import POSITIVE, section
from shared.wsi.slide import Slide

COUNTER = HaematoxylinCounter(leave_out_ink=True)
MATCH_UM = 4.0  # a found cell counts as right within about the radius of a nucleus
CROP_UM = 128.0


def matches(found_N2: np.ndarray, true_N2: np.ndarray, radius: float) -> np.ndarray:
    """Return indices of the true points that are found: most pairs within the radius, one to one."""
    distance = np.hypot(*(found_N2[:, None] - true_N2[None]).transpose(2, 0, 1))
    rows, columns = linear_sum_assignment(np.where(distance <= radius, distance, 1e6))
    return columns[distance[rows, columns] <= radius]


def crops(image: np.ndarray, points_N2: np.ndarray, mpp: float):
    """Fields of 128 um that cover the image, with the points inside each."""
    side = round(CROP_UM / mpp)
    starts = [np.linspace(0, n - side, max(1, round(n / side))).astype(int) for n in image.shape[:2]]
    for top in starts[0]:
        for left in starts[1]:
            inside = ((points_N2 >= (left, top)) & (points_N2 < (left + side, top + side))).all(axis=1)
            yield image[top : top + side, left : left + side], points_N2[inside] - (left, top)


Counting = Callable[[np.ndarray, float], np.ndarray]


def figures(
    fields: list[tuple[np.ndarray, np.ndarray]],
    mpp: float,
    find: Counting = COUNTER.find,
    match_um: float = MATCH_UM,
) -> dict[str, float]:
    """F1 of single cells, mean error of counts, precision and recall of "at least 30 cells"."""
    found, hits, true = [], [], []
    for image, points_N2 in fields:
        found_N2 = find(image, mpp)
        found.append(len(found_N2))
        true.append(len(points_N2))
        hits.append(len(matches(found_N2, points_N2, match_um / mpp)))
    accepted, right = np.array(found) >= 30, np.array(true) >= 30
    return {
        "f1": 2 * sum(hits) / (sum(found) + sum(true)),
        "error": float(np.abs(np.subtract(found, true)).mean()),
        "precision": (accepted & right).sum() / accepted.sum(),
        "recall": (accepted & right).sum() / right.sum(),
    }


def points_of(path: Path) -> np.ndarray:
    with path.open() as file:
        rows = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    return np.array(rows).reshape(-1, 2) + 0.5  # pixel indices


def annotated(folder: Path, mpp: float) -> list[tuple[np.ndarray, np.ndarray]]:
    fields = []
    for path in sorted((folder / "images").glob("*.png")):
        points_N2 = points_of(folder / "points" / f"{path.stem}.csv")
        fields += crops(np.asarray(Image.open(path).convert("RGB")), points_N2, mpp)
    return fields


def textbook(image: np.ndarray, mpp: float) -> np.ndarray:
    """Count by the recipe that the counter started from, to the letter and without a thought of speed.

    White balance, optical density, QuPath's haematoxylin of "H-DAB", difference of Gaussians of 2.0 and 3.2 um at
    1 um/px, maxima of 3 x 3 above 0.02.
    """
    width, height = round(image.shape[1] * mpp), round(image.shape[0] * mpp)
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX), float)
    white = np.percentile(small.reshape(-1, 3), 99, axis=0)
    density = np.maximum(-np.log10(np.maximum(small, 1) / white), 0)
    haematoxylin = density @ unmixing((0.651, 0.701, 0.290), (0.269, 0.568, 0.778))
    spots = gaussian_filter(haematoxylin, 2.0) - gaussian_filter(haematoxylin, 3.2)
    rows, columns = np.nonzero((spots == maximum_filter(spots, 3)) & (spots > 0.02))
    return (np.stack([columns, rows], axis=1) + 0.5) * image.shape[1] / width


def unmixing(*stains: tuple[float, float, float]) -> np.ndarray:
    """Return the share of red, green and blue density in the first of two stains, what is neither left out."""
    known = np.array(stains) / np.linalg.norm(stains, axis=1, keepdims=True)
    residual = np.cross(*known)
    return np.linalg.inv(np.vstack([known, residual / np.linalg.norm(residual)]))[:, 0]


# Sets, um/px, and what the counter reaches at least (count error: at most), all fields together. Published for the
# textbook's recipe on held-out fields, which are not named, are F1 .625, .699, .655; error 66, -, 24; precision
# .986, .955, .95; recall .973, 1, 1. Those of CD138 are its test fields, with matches within 3 um (next test). On
# the fields of the other two the recipe to the letter has F1 .626 and .706, error 63 and 36, precision .939 and
# .891, recall .986 and 1. BRCA-M2C's .955 asks for 12 wrong fields at most. There are 26, of which 14 hold 25 to
# 29 cells; the detector that was trained on most of them has 16 (precision .944, recall .996: cell_counters.csv).
@pytest.mark.parametrize(
    ("names", "mpp", "least"),
    [
        (("CoNSeP/test", "CoNSeP/train"), 0.5, {"f1": 0.645, "error": 65, "precision": 0.9855, "recall": 0.985}),
        (("BRCA-M2C/train",), 0.5, {"f1": 0.71, "error": 36.3, "precision": 0.91, "recall": 1.0}),
        (("CD138/test",), 0.25, {"f1": 0.715, "error": 24, "precision": 0.95, "recall": 1.0}),
    ],
)
def test_annotated_fields_beside_the_textbook(real_data, names, mpp, least):
    fields = [field for name in names for field in annotated(real_data / name, mpp)]
    ours, theirs = figures(fields, mpp), figures(fields, mpp, textbook)
    assert ours["error"] <= least.pop("error")
    for name, value in least.items():
        assert ours[name] >= value
        assert ours[name] >= theirs[name]
    assert ours["f1"] > theirs["f1"] + 0.005


def test_the_published_figures_of_cd138_are_met(real_data):
    """Two raters agree to F1 .871 within 3 um, as published: so these are the fields and that is the distance."""
    fields = annotated(real_data / "CD138/test", 0.25)
    second = [points_of(path) for path in sorted((real_data / "CD138/test_rater2/points").glob("*.csv"))]
    hits = sum(len(matches(other, own, 3 / 0.25)) for other, (_, own) in zip(second, fields, strict=True))
    cells = sum(len(other) + len(own) for other, (_, own) in zip(second, fields, strict=True))
    assert 2 * hits / cells == pytest.approx(0.871, abs=5e-4)
    assert figures(fields, 0.25, textbook, 3.0)["f1"] == pytest.approx(0.655, abs=5e-4)
    ours = figures(fields, 0.25, match_um=3.0)
    assert ours["f1"] >= 0.655
    assert ours["error"] <= 24
    assert (ours["precision"], ours["recall"]) == (0.95, 1.0)


def test_collagen_is_not_taken_for_cells(real_data):
    """A breast field of fibres with 29 nuclei: the textbook sees 145."""
    folder = real_data / "BRCA-M2C/train"
    (path,) = (folder / "images").glob("TCGA-AC-A3EH-01Z-00-DX1_*.png")
    image, true_N2 = np.asarray(Image.open(path).convert("RGB")), points_of(folder / "points" / f"{path.stem}.csv")
    assert len(textbook(image, 0.5)) > 4 * len(true_N2)
    assert len(COUNTER.find(image, 0.5)) < 2.5 * len(true_N2)


@pytest.mark.parametrize(
    ("tile", "corner"), [("train_2", (0, 0)), ("train_4", (0, 0)), ("train_4", (0, 244)), ("train_12", (0, 0))]
)
def test_ink_and_soot_are_not_taken_for_cells(real_data, tile, corner):
    """Black ink, burnt edges (twice) and blue ink beside 8 to 20 nuclei; the textbook sees 73 to 105."""
    image = np.asarray(Image.open(real_data / f"CoNSeP/train/images/{tile}.png").convert("RGB"))
    field = image[corner[1] : corner[1] + 256, corner[0] : corner[0] + 256]
    assert len(textbook(field, 0.5)) > 70
    assert len(COUNTER.find(field, 0.5)) < 30


def test_blue_grey_nuclei_of_an_ihc_slide_are_no_ink(real_data):
    """A place between glands, no brown in it: 55 nuclei, some cut by the edge."""
    with Slide(real_data / "slides/chromogranin_ihc_40x_region.svs") as slide:
        image = slide.read_pixels(4048, 2530, 512, 512, 0.25, allow_upsampling=True)
    assert 45 < len(COUNTER.find(image, 0.25)) < 70


def dotted(image: np.ndarray, centres_N2: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the picture, of 0.5 um/px, with spots of a nucleus's size."""
    inked = image.copy()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    for centre in centres_N2:
        inked[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 7**2] = colour
    return inked


def test_spots_of_blue_ink_are_no_cells_beside_nuclei():
    image = section(5, 128.0, 128.0).render(0.5)
    centres_N2 = np.array([(60.0, 200.0), (120.0, 40.0), (200.0, 130.0)])
    found_N2 = COUNTER.find(dotted(image, centres_N2, (10, 60, 150)), 0.5)
    nuclei_N2 = COUNTER.find(image, 0.5)
    for centre in centres_N2:
        assert (np.hypot(*(found_N2 - centre).T) > 4).all()
        nuclei_N2 = nuclei_N2[np.hypot(*(nuclei_N2 - centre).T) > 30]
    assert {*map(tuple, nuclei_N2)} <= {*map(tuple, found_N2)}


@pytest.mark.parametrize("colour", [(40, 41, 39), (120, 70, 30)])
def test_a_dot_in_a_field_of_soot_or_of_nuclei_changes_little(real_data, colour):
    """Neutral black and brown: neither makes cells of soot nor soot of cells."""
    for name, place in (("train/images/train_2", (30, 30)), ("test/images/test_1", (60, 90))):
        field = np.asarray(Image.open(real_data / f"CoNSeP/{name}.png").convert("RGB"))[:256, :256]
        change = len(COUNTER.find(dotted(field, np.array([place]), colour), 0.5)) - len(COUNTER.find(field, 0.5))
        assert abs(change) <= 3


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_known_cells_are_found_where_they_are(mpp):
    """Blue and brown ones, at every resolution; a shift by half a px would cost matches at 1.5 um."""
    specimen = section(5, 400.0, 400.0)
    true_N2, classes_N = specimen.cells(mpp)
    found_N2 = COUNTER.find(specimen.render(mpp), mpp)
    hit = matches(found_N2, true_N2, MATCH_UM / mpp)
    assert 2 * len(hit) / (len(found_N2) + len(true_N2)) > 0.75
    for chosen, least in ((classes_N == POSITIVE, 0.72), (classes_N != POSITIVE, 0.9)):
        assert chosen[hit].sum() / chosen.sum() > least
    nearest = found_N2[np.hypot(*(found_N2[:, None] - true_N2[hit][None]).transpose(2, 0, 1)).argmin(axis=0)]
    offset_um = np.median(nearest - true_N2[hit], axis=0) * mpp
    assert np.abs(offset_um).max() < 0.2


def test_the_same_tissue_at_two_resolutions_gives_the_same_count():
    specimen = section(6, 300.0, 300.0)
    counts = [len(COUNTER.find(specimen.render(mpp), mpp)) for mpp in (0.25, 0.5)]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def plainly_counted(image: np.ndarray, mpp: float) -> np.ndarray:
    """Count by the counter's definition, step by step, for images whose sides are whole um."""
    side, box = round(image.shape[0] * mpp), Image.Resampling.BOX
    columns = Image.fromarray(image).resize((image.shape[1], side), box)
    density = -np.log10(np.maximum(np.asarray(columns.resize((side, side), box), float), 1) / 255)
    two, four = np.full(2, 1 / 2), np.full(4, 1 / 4)
    fine = functools.reduce(np.convolve, (four, four, two, two))  # variance 3.0
    coarse = functools.reduce(np.convolve, (fine, four, four, four, four, four, two))  # 9.5
    spots = []
    for stain in (density @ unmixing((0.651, 0.701, 0.290), (0.216, 0.801, 0.558)), density[..., 0]):
        smooth = [convolve1d(convolve1d(stain, kernel, 0), kernel, 1) for kernel in (fine, coarse)]
        spots.append(smooth[0] - smooth[1])
    both = np.maximum(spots[0], 0.7 * spots[1])
    rows, columns = np.nonzero((both == maximum_filter(both, 3)) & (both > 0.024))
    colours_N3 = density[rows, columns]
    soot, brown = (colours_N3[:, 2] > share * colours_N3[:, 1] for share in (0.75, 1.0))
    sooty = np.sum(soot & ~brown) >= 10 and np.mean(soot & ~brown) >= 0.4 and np.mean(brown) < 0.05
    nuclei = [red <= 1.3 * green and not (sooty and blue > 0.65 * green) for red, green, blue in colours_N3]
    return (np.stack([columns, rows], axis=1)[nuclei] + 0.5) / mpp


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_what_makes_it_fast_changes_no_cell(mpp):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    noise[:, 256:, 2] |= 192  # purple; the other half is grey, as ink
    for image in (section(8, 512 * mpp, 512 * mpp).render(mpp), noise):
        expected = plainly_counted(image, mpp)
        assert len(expected) > 20
        np.testing.assert_array_equal(COUNTER.find(image, mpp), expected)


@pytest.mark.parametrize("grey", [200, 245, 255])
def test_glass_holds_no_cells(grey):
    noise = np.random.default_rng(0).normal(grey, 2, (512, 512, 3))
    assert len(COUNTER.find(np.clip(noise, 0, 255).astype(np.uint8), 0.25)) == 0


def test_one_nucleus_is_one_cell():
    image = np.full((512, 512, 3), 240, np.uint8)
    y, x = np.mgrid[:512, :512] + 0.5
    image[(x - 201) ** 2 + (y - 333) ** 2 < 14**2] = (70, 60, 140)  # 7 um across at 0.25 um/px
    assert COUNTER.find(image, 0.25) == pytest.approx(np.array([[201, 333]]), abs=2.1)


def test_white_balance_does_not_matter():
    """A darker lamp moves all densities by a constant, which a blob filter does not see."""
    image = section(7, 200.0, 200.0).render(0.5)
    darker = (image * 0.85).round().astype(np.uint8)
    assert len(COUNTER.find(darker, 0.5)) == pytest.approx(len(COUNTER.find(image, 0.5)), rel=0.03)


def test_densities_are_rounded_right():
    """As exact logarithms are, on every processor; numpy's in single precision differ between them."""
    with decimal.localcontext(prec=30):
        exact = [float(-(decimal.Decimal(max(value, 1)) / 255).log10()) for value in range(256)]
    assert np.array(exact, np.float32).tolist() == DENSITIES.tolist()


def test_cells_stay_where_they_are_on_images_that_are_no_squares():
    rows, columns = np.mgrid[:511, :513] + 0.5
    dark_HW = np.exp(-((columns - 499.3) ** 2 + (rows - 499.3) ** 2) / 50)
    image = np.round(235 - dark_HW[..., None] * (165, 175, 115)).astype(np.uint8)
    np.testing.assert_allclose(COUNTER.find(image, 0.5).mean(axis=0), [499.3, 499.3], atol=1.0)
