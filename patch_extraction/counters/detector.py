"""Cell counter by a detector: far slower than the classical counter, but not misled by collagen."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shared.errors import UserError
from shared.model.cells import select_cells
from shared.model.detector_file import load_detector
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.wsi.slide import MOST_UPSAMPLING

GPU_BATCH = 32  # patches


class DetectorCounter:
    """Counts detections of all classes at the um/px of the detector's training."""

    batch: int

    def __init__(self, path: Path) -> None:
        """Load the detector.

        Raises:
            UserError: the file is not a detector, needs several fields of view, or states no um/px.
        """
        detector, mpp = _loaded(path)
        if detector.config.views > 1:
            raise UserError(
                f"{path} needs {detector.config.views} fields of view and cannot count on patches alone; "
                "give a detector with one"
            )
        self._path = path
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        # Another device adds in another order, which may change the score of a cell.
        self.name = f"detector {digest} at {mpp:g} um/px on {_device()}"
        self.batch = GPU_BATCH if _device() == "cuda" else 1  # on a CPU batches gain nothing

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`.

        Raises:
            UserError: the image is much coarser than the images of the training.
        """
        return self.find_each([image_HW3], mpp)[0]

    def find_each(self, images: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
        """See `CellCounter.find_each`; raises the errors of `find`."""
        if not images:
            return []
        detector, own_mpp = _loaded(self._path)
        if mpp > MOST_UPSAMPLING * own_mpp:
            raise UserError(
                f"{self._path} was trained at {own_mpp:g} um/px and cannot count at {mpp:g}; "
                f"give --patch-mpp {own_mpp:g} or finer"
            )
        height, width = images[0].shape[:2]
        size = (max(1, round(width * mpp / own_mpp)), max(1, round(height * mpp / own_mpp)))
        small = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in images]  # antialiased
        image_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in small])).to(_device())
        with torch.inference_mode():
            cells = select_cells(detector(image_BHWC.permute(0, 3, 1, 2)), size[1], size[0])
        scale_2 = (width / size[0], height / size[1])
        return [each.points_N2.astype(float) * scale_2 for each in cells]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def _loaded(path: Path) -> tuple[DPAP2PNet, float]:
    """Load the detector and its um/px, once per process."""
    torch.set_num_threads(1)  # processes share the cores, and sums do not depend on their number
    detector, metadata = load_detector(path)
    mpp = metadata.get("mpp")
    if not isinstance(mpp, int | float) or mpp <= 0:
        raise UserError(f"{path} does not state the um/px of its training; export it again")
    return detector.to(_device()), float(mpp)
