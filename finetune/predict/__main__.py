"""`python -m finetune.predict DETECTOR SLIDE_OR_IMAGE_OR_DIR ... [--out cells/]`: slides in, cells out."""

import tyro

from shared.command_line import run
from shared.stop_signal import StopSignal


def main() -> int:
    """Predict; returns 0, 2 (nothing could be done), 3 (some slides failed) or 85 (told to stop; go on later)."""
    stop = StopSignal()  # before torch, as in finetune
    from finetune.predict.plan import Config
    from finetune.predict.predict import predict

    return predict(tyro.cli(Config, prog="python -m finetune.predict"), stop)


if __name__ == "__main__":
    run(main)
