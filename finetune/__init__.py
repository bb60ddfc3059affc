"""Stage 3: backbone weights and point annotations -> a detector -> cells.

`from finetune import Detector; Detector.load("detector.pth").predict(image)` is the way in from Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.detector import Detector

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    """`Detector`, when it is asked for: `python -m finetune` must not import torch before it handles signals."""
    if name == "Detector":
        from finetune.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
