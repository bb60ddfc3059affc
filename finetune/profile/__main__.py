"""`python -m finetune.profile`: parameters, multiply-adds and speed of every detector, beside the paper's."""

import csv
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from finetune.profile.training_cost import training_costs
from finetune.sweep.detector_size import config_of, image_of, multiply_adds
from finetune.sweep.paper_tables import VARIANTS, Variant
from shared.cli import Range, parse, run, validate
from shared.errors import UserError
from shared.files import own_path
from shared.model.cells import CellDetector, NetworkConfig
from shared.model.detector_file import network_of
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.reporting.tables import table
from shared.training.gpu_usage import explain_out_of_memory
from shared.training.network_size import count_parameters
from shared.training.precision import autocast
from shared.training.run_folder import provenance


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Print parameters, multiply-adds and images/s of every variant, and write them as CSV."""

    size: Annotated[int, Range(32, 8192)] = 1024
    """Side of the images, px."""
    classes: int = 10
    """Cell classes (paper, Table 3: 10, as on PD-L1)."""
    interval: int = 16
    """Px between proposals."""
    variants: tuple[str, ...] = field(default_factory=tuple)
    """Names of variants; empty: all."""
    seconds: Annotated[float, Range(0)] = 5.0
    """Time spent measuring the speed of each; 0: none."""
    train: str | None = None
    """Print instead memory and speed of training a detector with this trunk (timm name): all of it, with LoRA, or
    with a frozen trunk."""
    batch_size: Annotated[int, Range(1)] = 4
    """With `train`: crops of `size` px a step."""
    out: Path = Path("profile.csv")
    """The table."""


@dataclass(frozen=True)
class ProfileRow:
    """One line of the table."""

    variant: str
    params_m: float
    paper_params_m: float
    macs_g: float
    """As the paper's counter has them: norms counted, position embeddings not; of rivals see `detector_size`."""
    paper_macs_g: float
    true_macs_g: float
    """All products, each once."""
    sampled_macs_g: float
    """As the paper's counter has them, with the finest levels smoothed only where they are sampled."""
    images_per_second: float
    """From the image to its cells."""
    paper_fps: float


def profile(config: ProfileConfig) -> int:
    """Measure, print and write.

    Raises:
        UserError: an option makes no sense, `out` cannot be written, or memory ran out.
    """
    validate(config)
    with explain_out_of_memory("a smaller --size or --batch-size"):
        return _print_variants(config) if config.train is None else _print_training(config, config.train)


def _print_variants(config: ProfileConfig) -> int:
    chosen = [variant for variant in VARIANTS if not config.variants or variant.name in config.variants]
    if unknown := set(config.variants) - {variant.name for variant in chosen}:
        names = ", ".join(variant.name for variant in VARIANTS)
        raise UserError(f"there is no variant {min(unknown)!r}; choose from: {names}")
    settings = [config_of(variant, config.classes, config.interval) for variant in chosen]
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.touch()
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror}); give another file") from error
    rows = []
    for variant, each in zip(chosen, settings, strict=True):
        rows.append(_measure(variant, each, config))
        print(f"measured: {variant.name}", flush=True)
    header = ("variant", "params M", "paper", "MACs G", "paper", "true", "sampled", "images/s", "paper")
    print(f"\n{table(header, [_line(row) for row in rows])}")
    _write(config, rows)
    return 0


def _print_training(config: ProfileConfig, arch: str) -> int:
    """Print what each way to train costs."""
    detector = DetectorConfig(arch=arch, classes=config.classes, interval=config.interval)
    costs = training_costs(detector, config.size, config.batch_size, config.seconds)
    rows = [
        (each.way, f"{each.trained_m:.1f}", f"{each.memory_gib:.1f}", f"{each.images_per_second:.2f}")
        for each in costs
    ]
    print(f"{arch}, {config.batch_size} crops of {config.size} px a step")
    print(table(("trained", "params M", "memory GiB", "images/s"), rows))
    return 0


def _measure(variant: Variant, settings: NetworkConfig, config: ProfileConfig) -> ProfileRow:
    detector = network_of(settings).eval()
    if isinstance(detector, DPAP2PNet):
        detector.samples_smoothing = False
    dense = sampled = multiply_adds(detector, config.size)
    if isinstance(detector, DPAP2PNet):
        detector.samples_smoothing = True
        sampled = multiply_adds(detector, config.size)
    return ProfileRow(
        variant.name,
        count_parameters(detector) / 1e6,
        variant.paper_params_m,
        dense.paper,
        variant.paper_macs_g,
        dense.true,
        sampled.paper,
        images_per_second(detector, config) if config.seconds else 0.0,
        variant.paper_fps,
    )


@torch.inference_mode()
def images_per_second(detector: CellDetector, config: ProfileConfig) -> float:
    """Batch 1, on the GPU in bfloat16 if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image = image_of(detector, config.size).to(device)
    detector.to(device)
    count, start = 0, 0.0
    with autocast(device):
        for warm in (False, True):
            start, count = time.perf_counter(), 0
            while count < 1 or (warm and time.perf_counter() - start < config.seconds):
                detector.detect(image)
                count += 1
    return count / (time.perf_counter() - start)


def _line(row: ProfileRow) -> tuple[str, ...]:
    params, macs, fps = (
        f"{value:g}" if value else "-" for value in (row.paper_params_m, row.paper_macs_g, row.paper_fps)
    )
    speed = f"{row.images_per_second:.2f}" if row.images_per_second else "-"
    counted = (f"{value:.2f}" for value in (row.true_macs_g, row.sampled_macs_g))
    return row.variant, f"{row.params_m:.3f}", params, f"{row.macs_g:.2f}", macs, *counted, speed, fps


def _write(config: ProfileConfig, rows: list[ProfileRow]) -> None:
    """Write the rows, each with where and when it was measured."""
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
    with own_path(config.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), *common])
        writer.writeheader()
        writer.writerows({**asdict(row), **common} for row in rows)
    print(f"table: {config.out}")


if __name__ == "__main__":
    run(lambda: profile(parse(ProfileConfig, "python -m finetune.profile")))
