"""Trained detector for use from Python: `from finetune import Detector`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from shared.model.detector_file import LoadedDetector

if TYPE_CHECKING:
    from shared.model.cells import Cells


@dataclass(frozen=True)
class Detector(LoadedDetector):
    """Network, classes in the order of labels, um/px of the training images."""

    def predict(self, image: np.ndarray | Image.Image | str | Path, mpp: float | None = None) -> "Cells":
        """Predict the cells of an image or slide: points in px of level 0 (corner origin), labels, probabilities.

        Args:
            image: uint8 RGB (height, width, 3), a PIL image, or the path of an image or of a slide, of which the
                tissue is searched.
            mpp: um/px, instead of what the file states; an image that states none has the detector's.

        Raises:
            UserError: it is no image, or far coarser than the training images.
        """
        from finetune.predict.in_memory import predict_image  # heavier than loading

        return predict_image(self, image, mpp)
