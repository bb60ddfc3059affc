"""CoNSeP at 20x as points: `{train,test}/{images,points}` with images named `train_N` and `test_N`."""

from pathlib import Path

from finetune.datasets.description import Description

# Classes of the paper's Table 2: HoVer-Net's types grouped as inflammatory [2], epithelial [3, 4] and
# stromal [1, 5, 6, 7]; this grouping alone reproduces the table's 13,040 / 2,515 / 8,777 cells.
CLASSES = {"inflammatory": "1", "epithelial": "2", "stromal": "3"}
# The validation tiles behind the same counts (MCSpatNet's published split).
VAL = frozenset({"train_5", "train_8", "train_11", "train_16", "train_23"})
MPP = 0.5


def is_consep(folder: Path) -> bool:
    """Whether the folder holds CoNSeP: its numbered tiles, and no description that says otherwise."""
    names = ("train/images/train_1.png", "test/images/test_1.png", "train/points/train_1.csv")
    return all((folder / name).exists() for name in names) and not (folder / "dataset.json").exists()


def description() -> Description:
    """What the published files do not say: 0.5 um/px, integer pixel indices, the paper's split."""
    return Description(mpp=MPP, classes=CLASSES, origin="pixel_index", val=VAL)
