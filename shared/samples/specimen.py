"""Procedural immunohistochemistry: a specimen with known cells, rendered at any resolution.

A specimen is described in micrometres and rendered by Beer-Lambert's law, so that the same tissue can be stored at
two resolutions and optical densities add up as in a real section. It is a test object, not a simulator: blue
(negative) and brown (positive) nuclei of varied size, shape and darkness on a fibrous background, some touching,
some out of focus, beside specks of debris that are not cells.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from shared.wsi.stains import DAB, EOSIN, HAEMATOXYLIN

NEGATIVE, POSITIVE = 1, 2
MARGIN_UM = 16.0  # of tissue beyond the edge, so that cells there are cut, not missing
STRIP_ROWS = 512  # rendered at a time, to bound the memory
MIN_DISTANCE_UM = 5.0  # of centres: nuclei may overlap slightly


@dataclass(frozen=True)
class Field:
    """Smooth values over a specimen and its margin: knots every `spacing` um, cubic interpolation."""

    values: np.ndarray
    spacing: float

    def sample(self, x_um: float, y_um: float, width: int, height: int, mpp: float) -> np.ndarray:
        """Return values at `width` x `height` pixels of `mpp` um with the outer corner at (`x_um`, `y_um`)."""
        left, top = (x_um + MARGIN_UM) / self.spacing, (y_um + MARGIN_UM) / self.spacing
        box = (left, top, left + width * mpp / self.spacing, top + height * mpp / self.spacing)
        knots = Image.fromarray(self.values)
        return np.asarray(knots.resize((width, height), Image.Resampling.BICUBIC, box=box))

    def at(self, points_N2: np.ndarray) -> np.ndarray:
        """Return the values of the knots nearest to points in um."""
        columns, rows = ((points_N2 + MARGIN_UM) / self.spacing).astype(int).T
        values_N: np.ndarray = self.values[rows, columns]
        return values_N


@dataclass(frozen=True)
class Stain:
    """Staining of one slide: optical densities, and the colour of its glass."""

    haematoxylin: float
    dab: float
    background_haematoxylin: float
    background_dab: float
    background_eosin: float
    glass: tuple[float, float, float]

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Stain":
        """Draw a stain within the variation between laboratories."""
        grey, tint = rng.uniform(0.88, 0.96), rng.uniform(-0.012, 0.012)
        return cls(
            haematoxylin=rng.uniform(0.55, 0.85),
            dab=rng.uniform(0.6, 1.0),
            background_haematoxylin=rng.uniform(0.06, 0.12),
            background_dab=rng.uniform(0.02, 0.07),
            background_eosin=rng.uniform(0.0, 0.03),
            glass=(grey + tint, grey, grey - tint),
        )


@dataclass(frozen=True)
class Nuclei:
    """N nuclei, or specks of debris: ellipses with a wavy outline, in um."""

    centres: np.ndarray  # [N, 2]: x, y
    semi_axes: np.ndarray  # [N, 2]: long, short
    angles: np.ndarray  # [N]: of the long axis, radians
    darkness: np.ndarray  # [N]: relative to the slide's stain
    waves: np.ndarray  # [N, 2]: phases of the outline's second and third harmonic
    classes: np.ndarray  # [N]

    def __len__(self) -> int:
        return len(self.centres)

    def inside(self, width_um: float, height_um: float) -> np.ndarray:
        """Return a mask of the centres inside (0, 0)..(`width_um`, `height_um`)."""
        inside_N2 = (self.centres >= 0) & (self.centres < [width_um, height_um])
        all_N: np.ndarray = np.all(inside_N2, axis=1)
        return all_N


@dataclass(frozen=True)
class Specimen:
    """Tissue on glass, `width` x `height` um, fully determined."""

    width: float
    height: float
    stain: Stain
    nuclei: Nuclei
    debris: Nuclei
    tissue: Field  # 0 on glass, 1 in tissue
    fibres: Field  # mean 0, standard deviation 1, like the next two
    grain: Field
    focus: Field
    seed: int

    def cells(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """Return centres (x, y in px of `mpp` um, corner origin) and classes of the cells inside."""
        inside = self.nuclei.inside(self.width, self.height)
        return self.nuclei.centres[inside] / mpp, self.nuclei.classes[inside]

    def render(self, mpp: float) -> np.ndarray:
        """Render the specimen as uint8 RGB, [height / mpp, width / mpp, 3]."""
        width, height = round(self.width / mpp), round(self.height / mpp)
        image = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, STRIP_ROWS):
            rows = min(STRIP_ROWS, height - top)
            image[top : top + rows] = _render_strip(self, top, rows, width, mpp)
        return image


def section(seed: int, width: float, height: float, stain: Stain | None = None, shape: str = "full") -> Specimen:
    """Generate a random specimen of `width` x `height` um.

    Args:
        seed: Random seed.
        width: um.
        height: um.
        stain: Staining of the slide; random if None.
        shape: "full" (tissue everywhere), "blob" (one round piece) or "biopsy" (two thin cores).
    """
    rng = np.random.default_rng(seed)
    stain = stain or Stain.random(rng)
    tissue = _tissue(rng, width, height, shape)
    # Cells per mm2: patches of 128 um hold from a handful to about 90.
    density = np.clip(3000 + 1300 * _noise(rng, (width, height), 8.0, 90.0).values, 500, 5600)
    nest = _noise(rng, (width, height), 8.0, 60.0)
    centres_N2 = _centres(rng, width, height, Field(density * (tissue.values > 0.6), 8.0))
    positive_N = rng.random(len(centres_N2)) < np.where(nest.at(centres_N2) > 0.3, 0.8, 0.12)
    return Specimen(
        width,
        height,
        stain,
        nuclei=_nuclei(rng, centres_N2, np.where(positive_N, POSITIVE, NEGATIVE)),
        debris=_debris(rng, width, height, tissue),
        tissue=tissue,
        fibres=_noise(rng, (width, height), 2.0, 3.0, stretch=5.0),
        grain=_noise(rng, (width, height), 1.0, 0.8),
        focus=_noise(rng, (width, height), 8.0, 80.0),
        seed=seed,
    )


def _grid(width: float, height: float, spacing: float) -> tuple[int, int]:
    rows, columns = (int((side + 2 * MARGIN_UM) / spacing) + 3 for side in (height, width))
    return rows, columns


def _noise(
    rng: np.random.Generator, size: tuple[float, float], spacing: float, scale: float, stretch: float = 1.0
) -> Field:
    """Generate noise of mean 0 and standard deviation 1, correlated over `scale` um (`stretch` times that in
    x)."""
    values = rng.standard_normal(_grid(*size, spacing), np.float32)
    values = gaussian_filter(values, (scale / spacing, stretch * scale / spacing), mode="wrap")
    return Field((values - values.mean()) / values.std(), spacing)


def _tissue(rng: np.random.Generator, width: float, height: float, shape: str) -> Field:
    spacing = 8.0
    rows, columns = _grid(width, height, spacing)
    if shape == "full":
        return Field(np.ones((rows, columns), np.float32), spacing)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * spacing
    if shape == "blob":
        depth = (
            0.42 * min(width, height) * (1 - np.hypot((x - width / 2) / width, (y - height / 2) / height) / 0.42)
        )
    else:
        bend = 0.05 * height * np.sin(x / width * rng.uniform(4, 8) + rng.uniform(0, 6))
        middles = [height * rng.uniform(0.24, 0.3), height * rng.uniform(0.68, 0.74)]
        across = np.minimum(*(np.abs(y - middle - bend) for middle in middles))
        along = np.minimum(x, width - x) - 0.06 * width
        depth = np.minimum(0.15 * height - across, along)
    depth = depth + 22 * _noise(rng, (width, height), spacing, 30.0).values
    return Field(np.clip(0.5 + depth / 16, 0, 1).astype(np.float32), spacing)


def _centres(rng: np.random.Generator, width: float, height: float, density: Field) -> np.ndarray:
    """Draw centres in um by density (per mm2), every seventh with touching neighbours."""
    size = np.array([width, height]) + 2 * MARGIN_UM
    most = float(density.values.max())
    points = rng.uniform(0, 1, (round(most * size.prod() * 1e-6), 2)) * size - MARGIN_UM
    points = points[rng.random(len(points)) * most < 0.8 * density.at(points)]
    crowded = points[rng.random(len(points)) < 1 / 7]
    angles, members = rng.uniform(0, 2 * np.pi, (len(crowded), 2)), rng.uniform(5.5, 7.5, (len(crowded), 2))
    offsets = np.stack([members * np.cos(angles), members * np.sin(angles)], axis=-1)
    touching = (crowded[:, None] + offsets).reshape(-1, 2)
    touching = touching[(touching >= -MARGIN_UM).all(axis=1) & (touching < size - MARGIN_UM).all(axis=1)]
    points = np.concatenate([points, touching[density.at(touching) > 0]])
    if not len(points):
        return points
    pairs_P2 = KDTree(points).query_pairs(MIN_DISTANCE_UM, output_type="ndarray")
    return np.delete(points, pairs_P2[:, 1], axis=0)


def _nuclei(rng: np.random.Generator, centres_N2: np.ndarray, classes_N: np.ndarray) -> Nuclei:
    """Draw nuclei of 6-10 um; one in five is a spindle."""
    count = len(centres_N2)
    radius_N = rng.uniform(3.0, 5.0, count)
    spindle_N = rng.random(count) < 0.2
    elongation_N = np.where(spindle_N, rng.uniform(1.6, 2.2, count), rng.uniform(1.0, 1.4, count))
    root_N = np.sqrt(elongation_N)
    return Nuclei(
        centres_N2,
        np.stack([radius_N * root_N, radius_N / root_N], axis=1),
        rng.uniform(0, np.pi, count),
        rng.uniform(0.5, 1.15, count),
        rng.uniform(0, 2 * np.pi, (count, 2)),
        classes_N,
    )


def _debris(rng: np.random.Generator, width: float, height: float, tissue: Field) -> Nuclei:
    """Draw specks of 1-2 um, 150 per mm2 of tissue."""
    size = np.array([width, height]) + 2 * MARGIN_UM
    points = rng.uniform(0, 1, (round(150e-6 * size.prod()), 2)) * size - MARGIN_UM
    points = points[tissue.at(points) > 0.5]
    radius_N2 = rng.uniform(0.5, 1.0, (len(points), 1)).repeat(2, axis=1)
    zeros = np.zeros(len(points))
    darkness_N = rng.uniform(0.5, 1.0, len(points))
    return Nuclei(points, radius_N2, zeros, darkness_N, np.zeros((len(points), 2)), zeros + POSITIVE)


def _render_strip(specimen: Specimen, top: int, rows: int, width: int, mpp: float) -> np.ndarray:
    """Render rows `top`..`top + rows` as uint8 RGB."""
    margin = int(6 / mpp)  # px beyond the strip: the reach of the blur
    window = (0.0, (top - margin) * mpp, width, rows + 2 * margin, mpp)
    rng = np.random.default_rng((specimen.seed, top))
    light = _blurred(_transmitted(specimen, window), specimen.focus.sample(*window), mpp)
    light = light[margin : margin + rows]
    rendered: np.ndarray = np.clip(light + rng.normal(0, 2.0, light.shape).astype(np.float32), 0, 255).astype(
        np.uint8
    )
    return rendered


def _transmitted(specimen: Specimen, window: tuple[float, float, int, int, float]) -> np.ndarray:
    """Compute the transmitted light, float32 RGB in 0..255, by Beer-Lambert's law for three stains."""
    stain, tissue = specimen.stain, specimen.tissue.sample(*window)
    fibres = np.clip(1 + 0.4 * specimen.fibres.sample(*window), 0.2, 3)
    grain = specimen.grain.sample(*window)
    ground = fibres * (1 + 0.12 * grain) * tissue
    chromatin = np.clip(1 + 0.22 * grain, 0.3, 2) * tissue
    negative = specimen.nuclei.classes == NEGATIVE
    blue = _absorbed(specimen.nuclei, negative, window) * chromatin
    brown = _absorbed(specimen.nuclei, ~negative, window) * chromatin
    brown_specks = _absorbed(specimen.debris, specimen.debris.classes > 0, window) * tissue
    h = stain.background_haematoxylin * ground + stain.haematoxylin * (blue + 0.15 * brown)
    dab = stain.background_dab * ground + stain.dab * (brown + brown_specks)
    eosin = stain.background_eosin * ground
    light = np.empty((*tissue.shape, 3), np.float32)
    for channel, glass in enumerate(stain.glass):
        density = h * HAEMATOXYLIN[channel] + dab * DAB[channel] + eosin * EOSIN[channel]
        light[..., channel] = 255 * glass * np.exp(-np.log(10, dtype=np.float32) * density)
    return light


def _absorbed(nuclei: Nuclei, chosen: np.ndarray, window: tuple[float, float, int, int, float]) -> np.ndarray:
    """Add up the darkness of the chosen nuclei over a window."""
    x_um, y_um, width, height, mpp = window
    canvas = np.zeros((height, width), np.float32)
    reach_N = 1.3 * nuclei.semi_axes.max(axis=1, initial=0) + 1
    y_N = nuclei.centres[:, 1]
    near = chosen & (y_N + reach_N > y_um) & (y_N - reach_N < y_um + height * mpp)
    for index in np.flatnonzero(near):
        x, y = (nuclei.centres[index] - (x_um, y_um)) / mpp
        reach = reach_N[index] / mpp
        left, upper = max(0, int(x - reach)), max(0, int(y - reach))
        right, lower = min(width, int(x + reach) + 1), min(height, int(y + reach) + 1)
        if right > left and lower > upper:
            dx, dy = np.arange(left, right) + 0.5 - x, np.arange(upper, lower) + 0.5 - y
            canvas[upper:lower, left:right] += _ellipse(nuclei, int(index), dx * mpp, dy * mpp, mpp)
    return canvas


def _ellipse(nuclei: Nuclei, index: int, dx: np.ndarray, dy: np.ndarray, mpp: float) -> np.ndarray:
    """Render a nucleus on the grid of offsets `dx` x `dy` um from its centre, with an edge of 0.8 um or a
    pixel."""
    (long, short), (second, third) = nuclei.semi_axes[index], nuclei.waves[index]
    cos, sin = np.cos(nuclei.angles[index]), np.sin(nuclei.angles[index])
    u = (dx[None] * cos + dy[:, None] * sin) / long
    v = (dy[:, None] * cos - dx[None] * sin) / short
    direction = np.arctan2(v, u)
    outline = 1 + 0.06 * np.cos(2 * direction + second) + 0.06 * np.cos(3 * direction + third)
    distance = np.hypot(u, v)
    covered = np.clip(0.5 + (outline - distance) * np.sqrt(long * short) / max(0.8, mpp), 0, 1)
    ellipse: np.ndarray = nuclei.darkness[index] * covered * (0.85 + 0.15 * np.minimum(distance, 1))
    return ellipse


def _blurred(light: np.ndarray, focus: np.ndarray, mpp: float) -> np.ndarray:
    """Blend with a copy blurred by 1.2 um where `focus` is high."""
    picture = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2 / mpp)), np.float32)
    share = np.clip(focus - 0.6, 0, 1)[..., None]
    blurred: np.ndarray = light + share * (soft - light)
    return blurred
