"""`python -m finetune.profile`: size, work and speed of every detector, beside the paper's Tables 3 and 5."""

import csv
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from shared.cli import check_range, run
from shared.errors import UserError
from shared.files import atomic_path
from shared.model.dpa_p2pnet import Config as DetectorConfig
from shared.model.dpa_p2pnet import Detector
from shared.training.flops import counted_operations
from shared.training.precision import autocast
from shared.training.run_folder import provenance

VIT = "vit_base_patch16_224"
SINGLE = {"multi_scale": False, "deformable": False}
# The counter of the paper adds two operations for every output of a norm and two for its scale and shift.
NORM_OPERATIONS = 4
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


@dataclass(frozen=True)
class Variant:
    """One detector, and what the paper prints for it (0: nothing)."""

    name: str
    fields: Mapping[str, Any]
    """Of the detector's config, besides classes and interval."""
    paper_params_m: float = 0.0
    paper_macs_g: float = 0.0
    paper_fps: float = 0.0


# Tables 3 (PD-L1, ten classes) and 5 (OCELOT) of the paper, and its text on ViT-Adapter; its GPU is not named.
VARIANTS = (
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


@dataclass(frozen=True, kw_only=True)
class Config:
    """Print parameters, multiply-adds and images/s of every variant, and write them as CSV."""

    size: int = 1024
    """Side of the images, px."""
    classes: int = 10
    """Cell classes (paper, Table 3: 10, as on PD-L1)."""
    interval: int = 16
    """Px between proposals."""
    variants: tuple[str, ...] = field(default_factory=tuple)
    """Names of variants; empty: all."""
    seconds: float = 5.0
    """Time spent measuring the speed of each; 0: none."""
    out: Path = Path("profile.csv")
    """The table."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    variant: str
    params_m: float
    paper_params_m: float
    macs_g: float
    """As the paper's counter has them: norms counted, position embeddings not."""
    paper_macs_g: float
    sampled_macs_g: float
    """With the finest levels smoothed only where they are sampled."""
    images_per_second: float
    paper_fps: float


def profile(config: Config) -> int:
    """Measure, print and write."""
    check_range("size", config.size, 32, 8192)
    check_range("seconds", config.seconds, 0)
    chosen = [variant for variant in VARIANTS if not config.variants or variant.name in config.variants]
    if unknown := set(config.variants) - {variant.name for variant in chosen}:
        names = ", ".join(variant.name for variant in VARIANTS)
        raise UserError(f"there is no variant {min(unknown)!r}; choose from: {names}")
    print(
        f"{'variant':<26} {'params M':>9} {'paper':>6} {'MACs G':>8} {'paper':>6} {'sampled':>8} {'images/s':>9} "
        f"{'paper':>6}"
    )
    settings = [_settings(variant, config) for variant in chosen]
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.touch()
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror}); give another file") from error
    rows = []
    for variant, each in zip(chosen, settings, strict=True):
        rows.append(_measure(variant, each, config))
        print(_line(rows[-1]), flush=True)
    _write(config, rows)
    return 0


def _settings(variant: Variant, config: Config) -> DetectorConfig:
    return DetectorConfig(classes=config.classes, interval=config.interval, **variant.fields)


def _measure(variant: Variant, settings: DetectorConfig, config: Config) -> Row:
    detector = Detector(settings).eval()
    detector.samples_smoothing = False
    dense = multiply_adds(detector, config.size)
    detector.samples_smoothing = True
    return Row(
        variant.name,
        sum(parameter.numel() for parameter in detector.parameters()) / 1e6,
        variant.paper_params_m,
        dense,
        variant.paper_macs_g,
        multiply_adds(detector, config.size),
        images_per_second(detector, config) if config.seconds else 0.0,
        variant.paper_fps,
    )


def image_of(detector: Detector, size: int) -> torch.Tensor:
    """One empty image, or as many views of it as the detector takes."""
    views = detector.config.views
    return torch.zeros((1, 3, size, size) if views == 1 else (1, views, 3, size, size))


def multiply_adds(detector: Detector, size: int) -> float:
    """Billions for one image; nothing is computed."""
    with torch.no_grad(), _norm_outputs(detector) as outputs, counted_operations() as operations:
        detector(image_of(detector, size))
    return (operations.get_total_flops() / 2 + NORM_OPERATIONS * sum(outputs)) / 1e9


@contextmanager
def _norm_outputs(detector: nn.Module) -> Iterator[list[int]]:
    """Collects the numbers of values that norms put out."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: counts.append(output.numel()))
        for module in detector.modules()
        if isinstance(module, NORMS)
    ]
    yield counts
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def images_per_second(detector: Detector, config: Config) -> float:
    """Batch 1, on the GPU in bfloat16 if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image = image_of(detector, config.size).to(device)
    detector.to(device)
    count, start = 0, 0.0
    with autocast(device):
        for warm in (False, True):
            start, count = time.perf_counter(), 0
            while count < 1 or (warm and time.perf_counter() - start < config.seconds):
                detector(image).logits_BNC.sum().item()  # waits for the GPU
                count += 1
    return count / (time.perf_counter() - start)


def _line(row: Row) -> str:
    params, macs, fps = (
        f"{value:g}" if value else "-" for value in (row.paper_params_m, row.paper_macs_g, row.paper_fps)
    )
    speed = f"{row.images_per_second:.2f}" if row.images_per_second else "-"
    return (
        f"{row.variant:<26} {row.params_m:>9.3f} {params:>6} {row.macs_g:>8.2f} {macs:>6} "
        f"{row.sampled_macs_g:>8.2f} {speed:>9} {fps:>6}"
    )


def _write(config: Config, rows: list[Row]) -> None:
    """The rows, each with where and when it was measured."""
    made = provenance()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    common = {
        "size": config.size,
        "classes": config.classes,
        "interval": config.interval,
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": made["git_commit"],
        "date": made["time"],
    }
    with atomic_path(config.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), *common])
        writer.writeheader()
        writer.writerows({**asdict(row), **common} for row in rows)
    print(f"table: {config.out}")


if __name__ == "__main__":
    run(lambda: profile(tyro.cli(Config, prog="python -m finetune.profile")))
