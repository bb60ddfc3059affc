"""Cell counter by a detector: slower than the classical counter, but not misled by collagen."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared.errors import UserError
from shared.weights.shipped import NUCLEI, NUCLEI_FILE
from shared.wsi.resampling import resample
from shared.wsi.slide import MOST_UPSAMPLING

if TYPE_CHECKING:
    from shared.model.detector_file import LoadedDetector

# Patches per call; on a CPU four take 0.7 of the time that each takes alone, and more gain nothing.
GPU_BATCH, CPU_BATCH = 32, 4
FEWER = "fewer --workers, each of which holds the detector"


class DetectorCounter:
    """Counts detections of all classes at the um/px of the detector's training and its stored operating point.

    torch, whose import takes seconds, and the weights are loaded with the first image: a dry run and packing need
    neither.
    """

    def __init__(self, path: Path) -> None:
        """Identify the detector.

        Raises:
            UserError: there is no such file.
        """
        self._path = path
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        except OSError as error:
            raise UserError(f"there is no weights file {path} ({error.strerror}); check the path") from error
        self.name = f"{NUCLEI if path == NUCLEI_FILE else 'detector'} {digest}"

    @property
    def batch(self) -> int:
        """Images per call that use the device best."""
        return GPU_BATCH if _loaded(self._path).device.type == "cuda" else CPU_BATCH

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`.

        Raises:
            UserError: the file is not a detector, needs several fields of view, or states no um/px; the image is
                much coarser than the images of its training; memory ran out.
        """
        return self.find_each([image_HW3], mpp)[0]

    def find_each(self, images: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
        """See `CellCounter.find_each`; raises the errors of `find`."""
        if not images:
            return []
        import torch

        from shared.model.detector_file import stored_threshold
        from shared.training.gpu_usage import explain_out_of_memory
        from shared.training.precision import autocast

        detector = _loaded(self._path)
        if mpp > MOST_UPSAMPLING * detector.mpp:
            raise UserError(
                f"{self._path} was trained at {detector.mpp:g} um/px and cannot count at {mpp:g}; "
                f"give --patch-mpp {detector.mpp:g} or finer"
            )
        height, width = images[0].shape[:2]
        size = (max(1, round(width * mpp / detector.mpp)), max(1, round(height * mpp / detector.mpp)))
        image_BHWC = torch.from_numpy(np.stack([resample(image, size, (0, 0, width, height)) for image in images]))
        threshold = stored_threshold(detector.metadata)
        # In bfloat16 where the processor or GPU computes in it, in about half the time.
        with explain_out_of_memory(FEWER), torch.inference_mode(), autocast(detector.device, training=True):
            image_BCHW = image_BHWC.to(detector.device).permute(0, 3, 1, 2)
            cells = detector.network.detect(image_BCHW, threshold)
        scale_2 = (width / size[0], height / size[1])
        return [each.inside(size[1], size[0]).points_N2.astype(float) * scale_2 for each in cells]


@functools.cache
def _loaded(path: Path) -> "LoadedDetector":
    """Load the detector, once per process."""
    import torch

    from shared.model.backbones import fold_batch_norms
    from shared.model.detector_file import LoadedDetector
    from shared.training.gpu_usage import explain_out_of_memory

    torch.set_num_threads(1)  # processes share the cores, and sums do not depend on their number
    with explain_out_of_memory(FEWER):
        detector = LoadedDetector.load(path)
    if (views := detector.network.config.views) > 1:
        raise UserError(
            f"{path} needs {views} fields of view and cannot count on patches alone; give a detector with one"
        )
    for trunk in detector.network.trunks():
        fold_batch_norms(trunk)
    return detector
