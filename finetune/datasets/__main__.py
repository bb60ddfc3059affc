"""`python -m finetune.datasets COMMAND DIR`: summarise annotated data and prepare it for training."""

from finetune.datasets.cut_views import CutViews, cut_views
from finetune.datasets.data_summary import Summary, summarise
from finetune.datasets.import_qupath import Import, import_annotations
from finetune.predict.outputs.output_names import drawn_by_prediction
from finetune.review.config import Suggest
from shared.cli import parse_command, run

COMMANDS = {"summary": Summary, "import": Import, "cut-views": CutViews, "suggest": Suggest}


def main() -> int:
    """Parse the command line and run the command; returns the exit code."""
    config = parse_command(COMMANDS, "python -m finetune.datasets", __doc__ or "")
    if isinstance(config, Import):
        return import_annotations(config, drawn_by_prediction)
    if isinstance(config, CutViews):
        return cut_views(config)
    if isinstance(config, Suggest):
        from finetune.review.suggest import suggest  # with torch, which the others do without

        return suggest(config, drawn_by_prediction)
    summarise(config)
    return 0


if __name__ == "__main__":
    run(main)
