"""Random stains: optical densities are unmixed into stains and mixed again in other colours."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from shared.wsi import stains

# Optical densities in red, green, blue, of length 1.
HAEMATOXYLIN, EOSIN, DAB = (
    density / np.linalg.norm(density) for density in (stains.HAEMATOXYLIN, stains.EOSIN, stains.DAB)
)
# The third row takes what neither stain explains.
STAINS_33 = np.stack([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
UNMIXING_33 = np.linalg.inv(STAINS_33).astype(np.float32)
DENSITIES = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
# Shifts of a stain's amount at strength 1, in optical density: the most that glass is off white.
MAX_SHIFT = 0.1
# Immunohistochemistry: relative amounts of the counterstain, the darkest brown nuclei (black) and a red chromogen,
# and the probability of the red one.
COUNTERSTAIN, DARKEST_DAB, DARKEST_RED, RED = (0.4, 1.2), 2.5, 2.0, 0.2
# Cells of one kind are close together: this many groups fit along an image's side.
GROUPS = 8


@dataclass(frozen=True)
class StainTransform:
    """One random stain transform, applied to an image and all its fields of view."""

    amounts_3: np.ndarray
    """Factors of the three stains."""
    shifts_3: np.ndarray
    """Offsets of the three stains, added after the factors."""
    colours_33: np.ndarray
    """Optical densities of the three stains."""
    brown_3: np.ndarray
    """Optical density of the nuclei that turn brown."""
    brown_share: float
    """Fraction of the nuclei that turn brown."""
    groups_GG: np.ndarray
    """Noise over the widest view: where it is low, nuclei are brown."""

    @classmethod
    def drawn(cls, strength: float, brown: float, views: int, random: np.random.Generator) -> "StainTransform":
        """Draw a transform; arguments as of `restain`."""
        amounts_3 = 1 + strength * random.uniform(-1, 1, 3)
        shifts_3 = MAX_SHIFT * strength * random.uniform(-1, 1, 3)
        colours_33 = STAINS_33 + strength * random.uniform(-0.5, 0.5, (3, 3))
        brown_3 = DAB + strength * random.uniform(-0.5, 0.5, 3)
        share = 0.0
        if random.random() < brown:
            share = random.choice([0.0, random.random(), 1.0])
            amounts_3[0] *= random.uniform(*COUNTERSTAIN)
            brown_3 *= random.uniform(1, DARKEST_DAB)
            if random.random() < RED:
                amounts_3[1] *= random.uniform(1, DARKEST_RED)
            else:
                colours_33[1] = brown_3 if random.random() < 0.5 else colours_33[0]
                amounts_3[1] *= random.random()
        groups_GG = random.random((GROUPS << (views - 1),) * 2)
        return cls(amounts_3, shifts_3, colours_33, brown_3, share, groups_GG)

    def apply(self, image_HWC: np.ndarray, share_of_widest: float) -> np.ndarray:
        """Restain a uint8 RGB image that shows the middle of the widest view, this share of its side."""
        stains_HW3 = DENSITIES[image_HWC] @ UNMIXING_33 * self.amounts_3 + self.shifts_3
        density_HWC = np.float32(stains_HW3 @ self.colours_33)
        if self.brown_share:
            brown_HW1 = self._brown(image_HWC.shape[:2], share_of_widest)[..., None]
            density_HWC += brown_HW1 * stains_HW3[..., :1] * (self.brown_3 - self.colours_33[0])
        return (256 * 10**-density_HWC - 1).clip(0, 255).round().astype(np.uint8)

    def _brown(self, size: tuple[int, int], share_of_widest: float) -> np.ndarray:
        """Brownness of nuclei over an image, 0..1."""
        side = len(self.groups_GG)
        edge = side * (1 - share_of_widest) / 2
        noise = Image.fromarray(self.groups_GG.astype(np.float32))
        box = (edge, edge, side - edge, side - edge)
        noise_HW = np.asarray(noise.resize(size[::-1], Image.Resampling.BICUBIC, box))
        brown_HW: np.ndarray = np.clip(0.5 + 10 * (np.quantile(self.groups_GG, self.brown_share) - noise_HW), 0, 1)
        return brown_HW


def restain(views_KHWC: np.ndarray, strength: float, brown: float, random: np.random.Generator) -> np.ndarray:
    """Restain images as another laboratory would, or as for a protein.

    Args:
        views_KHWC: uint8 RGB, concentric; each shows half the width of the one before.
        strength: How far colours and amounts of the stains move, as shares (Tellez et al., 2018, move amounts by
            0.05, "light", or 0.2, "strong").
        brown: Probability that an H&E picture becomes a likeness of immunohistochemistry: some or all nuclei
            turn brown to black, or none; what eosin stained turns brown or blue, and pales, or becomes redder.
        random: Source of all random numbers.

    Returns:
        Images of the same shape, all changed in the same way.
    """
    transform = StainTransform.drawn(strength, brown, len(views_KHWC), random)
    return np.stack([transform.apply(view, 0.5**k) for k, view in enumerate(views_KHWC)])
