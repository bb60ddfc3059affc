"""Tables of the paper: settings of each row, and the F1 and AP that the paper prints for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIT = "vit_base_patch16_224"
SINGLE = {"multi_scale": False, "deformable": False}
# F1 and AP in percent, by the name of the data set; None: printed as "-".
Printed = Mapping[str, tuple[float | None, float | None]]
# Placeholder of the weights file that `--weights` names.
GIVEN = ""
# Names of the data sets of a table, by the layouts of `finetune.datasets.READERS`.
DATA_SETS = {"consep": "CoNSeP", "bcdata": "BCData", "ocelot": "OCELOT"}
# Switches between detectors of the family: no table leaves these to the command line.
SWITCHES = ("multi_scale", "deformable", "summed", "refinements")


@dataclass(frozen=True)
class Variant:
    """One detector, and what the paper prints for it (0: nothing)."""

    name: str
    fields: Mapping[str, Any]
    """Fields of the detector's config, besides classes and interval; of the family of P2PNet only."""
    paper_params_m: float = 0.0
    paper_macs_g: float = 0.0
    paper_fps: float = 0.0
    recipe: str = ""
    """Recipe of a rival."""


# Tables 3 (PD-L1, ten classes) and 5 (OCELOT) of the paper, and its text on ViT-Adapter; its GPU is not named.
VARIANTS = (
    Variant("U-Net", {}, 31.0, 876, 14, "unet"),
    Variant("DeepLabV3+", {}, 40.3, 277, 28, "deeplabv3plus"),
    Variant("U-CSRNet", {}, 10.1, 184, 3, "ucsrnet"),
    Variant("MCSpatNet", {}, 26.1, 1371, 12, "mcspatnet"),
    Variant("GL", {}, 21.5, 432, 27, "gl"),
    Variant("FIDT", {}, 66.6, 579, 10, "fidt"),
    Variant("CLTR", {}, 41.0, 105, 22, "cltr"),
    Variant("P2PNet", SINGLE, 27.3, 100, 41),
    Variant("E2E", {**SINGLE, "summed": True}, 28.9, 107, 42),
    Variant("MSD", {"deformable": False}),
    Variant("MSD + refinement", {"deformable": False, "refinements": 1}),
    Variant("DPA-P2PNet", {}, 32.3, 151, 39),
    Variant("P2PNet ViT-Adapter-B", {**SINGLE, "arch": VIT}, 100.7, 649),
    Variant("DPA-P2PNet ViT-Adapter-B", {"arch": VIT}, 103.0, 709),
    Variant("mFoV DPA-P2PNet, K=1", {}, paper_fps=25),
    Variant("mFoV DPA-P2PNet, K=2", {"views": 2}, paper_fps=18),
    Variant("mFoV DPA-P2PNet, K=3", {"views": 3}, paper_fps=11),
    Variant("mFoV DPA-P2PNet, K=4", {"views": 4}, paper_fps=8),
)


@dataclass(frozen=True)
class TableRow:
    """Row of a table: a training that is repeated with every seed."""

    name: str
    """Name of its folder and on the command line."""
    label: str
    """Label in the printed table."""
    settings: Mapping[str, Any]
    """Fields of the recipe that this row sets."""
    printed: Printed = field(default_factory=dict)
    """Numbers of the paper."""
    variant: str = ""
    """Name in `VARIANTS`, where the table has sizes."""
    recipe: str = "dpa_p2pnet"
    """Recipe that it is trained with; empty: its training is not published, and it is printed only."""
    weights_of: str = ""
    """Row whose weights it scores with a decoder of its own, instead of training."""


@dataclass(frozen=True)
class Table:
    """Table of the paper."""

    title: str
    rows: tuple[TableRow, ...]

    @property
    def decided(self) -> set[str]:
        """Fields of the recipe that rows set, and the command line may not."""
        return set(SWITCHES).union(*(row.settings for row in self.rows))

    def data_set(self, layout: str) -> str:
        """Find the data set of the printed numbers for a layout: its own if the table has it, else the last."""
        printed = [name for row in self.rows for name in row.printed]
        return DATA_SETS[layout] if DATA_SETS.get(layout) in printed else printed[-1]


def _consep(f1: float, ap: float) -> Printed:
    return {"CoNSeP": (f1, ap)}


def _ocelot(f1: float, ap: float) -> Printed:
    return {"OCELOT": (f1, ap)}


def _trunk(name: str, label: str, init: str, arch: str, scores: tuple[float, float]) -> TableRow:
    return TableRow(name, label, {"init": init, "arch": arch}, {"PD-L1": scores})


MSD = {"deformable": False}

TABLE_6 = Table(
    "Table 6: effect of multi-scale decoding (MSD) and deformable proposals (DPP)",
    (
        TableRow("p2pnet", "P2PNet", SINGLE, _consep(70.0, 60.5)),
        TableRow("msd", "+ MSD", MSD, _consep(70.7, 61.7)),
        TableRow("msd_dpp", "+ MSD + DPP", {}, _consep(71.1, 62.9)),
    ),
)

TABLE_7 = Table(
    "Table 7: weights that training starts from",
    (
        _trunk("random_resnet50", "ResNet-50, random", "random", "resnet50", (52.3, 39.3)),
        _trunk("imagenet_resnet50", "ResNet-50, ImageNet", "imagenet", "resnet50", (55.9, 43.7)),
        _trunk("moco_v2_resnet50", "ResNet-50, MoCo v2", GIVEN, "resnet50", (57.4, 45.4)),
        _trunk("swav_resnet50", "ResNet-50, SwAV", GIVEN, "resnet50", (56.4, 44.7)),
        _trunk("dino_resnet50", "ResNet-50, DINO", GIVEN, "resnet50", (56.6, 45.0)),
        _trunk("random_vitb", "ViT-B/16, random", "random", VIT, (56.7, 44.0)),
        _trunk("imagenet_vitb", "ViT-B/16, ImageNet", "imagenet", VIT, (58.0, 47.0)),
        _trunk("dino_vitb", "ViT-B/16, DINO", GIVEN, VIT, (60.8, 49.9)),
        _trunk("mae_vitb", "ViT-B/16, MAE", GIVEN, VIT, (61.7, 51.6)),
    ),
)

TABLE_5 = Table(
    "Table 5: number of fields of view",
    (
        TableRow("k1", "K = 1", {"views": 1}, _ocelot(59.3, 44.4)),
        TableRow("k2", "K = 2", {"views": 2}, _ocelot(62.6, 49.1)),
        TableRow("k3", "K = 3", {"views": 3}, _ocelot(64.2, 51.4)),
        TableRow("k4", "K = 4", {"views": 4}, _ocelot(64.6, 51.6)),
    ),
)

TABLE_4 = Table(
    "Table 4: detectors with a wider view (K = 2)",
    (
        TableRow("deeplabv3plus", "DeepLabV3+", {"views": 1}, _ocelot(58.8, 42.7), recipe="deeplabv3plus"),
        TableRow("deeplabv3plus_k2", "DeepLabV3+, K = 2 (fused our way)", {"views": 2}, recipe="deeplabv3plus"),
        TableRow("mfovce_net", "MFoVCE-Net", {}, _ocelot(59.3, 43.5), recipe=""),
        TableRow("mfovce_net_plus", "MFoVCE-Net+", {}, _ocelot(59.8, 44.2), recipe=""),
        TableRow("single_view", "DPA-P2PNet, one view", {"views": 1}, _ocelot(59.3, 44.4)),
        TableRow("bilinear", "K = 2, bilinear", {"views": 2, "upsampling": "bilinear"}, _ocelot(61.9, 48.9)),
        TableRow(
            "transposed", "K = 2, transposed conv.", {"views": 2, "upsampling": "transposed"}, _ocelot(62.6, 49.1)
        ),
    ),
)


def _rival(name: str, label: str, printed: tuple[float | None, ...], **others: Any) -> TableRow:
    """Row of Table 3 with F1 and AP on CoNSeP, BCData and PD-L1; the name is that of its recipe."""
    pairs = zip(DATA_SETS_3, zip(printed[::2], printed[1::2], strict=True), strict=True)
    fields = {"recipe": name, "settings": {}, "variant": label, **others}
    return TableRow(name, label, printed=dict(pairs), **fields)


DATA_SETS_3 = ("CoNSeP", "BCData", "PD-L1")

TABLE_3 = Table(
    "Table 3: networks of density maps, and of points",
    (
        _rival("unet", "U-Net", (61.8, None, 85.7, 80.1, 46.0, 33.4)),
        _rival("deeplabv3plus", "DeepLabV3+", (65.7, 53.7, 85.8, 82.1, 53.7, 41.3)),
        _rival("ucsrnet", "U-CSRNet", (42.5, 27.7, 85.7, None, 25.7, 21.1)),
        _rival("mcspatnet", "MCSpatNet", (68.2, 52.2, 85.3, 79.2, 43.6, 30.8)),
        # Its network at inference is DeepLabV3+'s.
        _rival("ml_cellnet", "ML-CellNet", (37.1, 20.0, 84.6, 79.7, 30.0, 20.7), recipe="", variant="DeepLabV3+"),
        _rival("gl", "GL", (16.7, None, 68.5, None, 32.5, None)),
        _rival("fidt", "FIDT", (70.3, 57.7, 85.9, 81.3, 51.9, 36.4)),
        _rival(
            "otm",
            "OT-M",
            (36.7, None, 66.5, None, 27.1, None),
            recipe="gl",
            variant="GL",
            settings={"decoder": "otm"},
            weights_of="gl",
        ),
        TableRow(
            "p2pnet",
            "P2PNet",
            SINGLE,
            {"CoNSeP": (70.0, 60.5), "BCData": (86.3, 83.8), "PD-L1": (54.4, 42.1)},
            "P2PNet",
        ),
        _rival("cltr", "CLTR", (40.8, 21.8, 84.8, 81.0, 54.3, 43.0)),
        TableRow(
            "e2e",
            "E2E",
            {**SINGLE, "summed": True},
            {"CoNSeP": (70.2, 59.9), "BCData": (86.3, 83.3), "PD-L1": (54.8, 42.5)},
            "E2E",
        ),
        TableRow(
            "dpa_p2pnet",
            "DPA-P2PNet",
            {},
            {"CoNSeP": (71.1, 62.9), "BCData": (86.7, 84.4), "PD-L1": (55.9, 43.7)},
            "DPA-P2PNet",
        ),
    ),
)

# The paper has this comparison in a supplement that is not public; the outer rows are those of Table 6.
REFINEMENT = Table(
    "Deformable proposals (DPP) against iterative refinement",
    (
        TableRow("msd", "MSD", MSD, _consep(70.7, 61.7)),
        TableRow("msd_refinement", "MSD + refinement", {**MSD, "refinements": 1}),
        TableRow("msd_dpp", "MSD + DPP", {}, _consep(71.1, 62.9)),
    ),
)

TABLES = {
    "table6": TABLE_6,
    "table7": TABLE_7,
    "table5": TABLE_5,
    "table4": TABLE_4,
    "table3": TABLE_3,
    "refinement": REFINEMENT,
}
