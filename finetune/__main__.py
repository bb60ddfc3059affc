"""`python -m finetune [RECIPE] --init WEIGHTS --data DIR`: annotated tiles -> detector.pth."""

from finetune.recipes import RECIPES
from finetune.train import train
from shared.command_line import parse, run

DESCRIPTION = "Fine-tune DPA-P2PNet on point annotations; writes ./detector.pth and a run folder."

if __name__ == "__main__":
    run(lambda: train(parse(RECIPES, "dpa_p2pnet", "python -m finetune", DESCRIPTION)))
