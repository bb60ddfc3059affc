"""A trained detector with what it was trained on; `from finetune import Detector` gives this class."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from shared.model.detector_file import LoadedDetector

if TYPE_CHECKING:
    from shared.model.cells import CellSet


@dataclass(frozen=True)
class Detector(LoadedDetector):
    """Network, classes in the order of its labels, um/px it was trained at."""

    def predict(self, image: np.ndarray | Image.Image | str | Path, mpp: float | None = None) -> "CellSet":
        """Cells in an image of any size: points in its px (corner origin), labels, probabilities.

        Args:
            image: uint8 RGB (height, width, 3), a PIL image, or the path of one.
            mpp: Its um/px, if that is not what the detector was trained at.

        Raises:
            UserError: it is no image, or far coarser than what the detector was trained at.
        """
        from finetune.predict.in_memory import predict_image  # heavier than loading

        return predict_image(self, image, mpp)
