"""`python -m finetune.predict DETECTOR SLIDE_OR_IMAGE_OR_DIR ... [--out cells/]`: slides in, cells out."""

from shared.cli import cli_beside, run
from shared.signals import StopSignal


def main() -> int:
    """Predict; returns 0, 2 (nothing could be done), 3 (some slides failed) or 85 (stopped; resumes)."""
    stop = StopSignal()  # before torch, as in finetune
    from finetune.predict.config import PredictConfig, check
    from finetune.predict.launch import LAUNCH, predict_in_slurm
    from finetune.predict.outputs.output_names import drawn_by_prediction
    from finetune.predict.supervise import SlideLog, supervise
    from shared.wsi.image_source import find_sources

    config, launch = cli_beside(PredictConfig, LAUNCH, "python -m finetune.predict")
    check(config)
    if launch.launcher == "slurm":
        return predict_in_slurm(len(find_sources(config.sources, drawn_by_prediction)), config.out, launch)
    log = SlideLog()

    def predict_slides() -> int:
        from finetune.predict.run import predict  # the parent needs none of it

        return predict(config, stop, log)

    return supervise(predict_slides, log)


if __name__ == "__main__":
    run(main)
