"""`python -m ssl_pretrain.inspect PLACE... --shards DIR`: compare the features of backbones."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import tyro
from PIL import Image
from torch import Tensor

from shared.cli import Range, make_folder, parse, run, validate
from shared.errors import UserError
from shared.files import own_path
from shared.training.gpu_usage import ON_CPU, explain_out_of_memory
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.shard_set import ShardSet, open_shards
from ssl_pretrain.data.views import Views, ViewsConfig
from ssl_pretrain.inspection import feature_metrics
from ssl_pretrain.inspection.backbone_sources import LoadedBackbone, open_subject, untrained
from ssl_pretrain.inspection.monitor import SAMPLES, undisturbed
from ssl_pretrain.inspection.probe_patches import Sample, labelled_patches, sample_patches
from ssl_pretrain.inspection.report import InspectionResult, as_table, write_csv, write_html
from ssl_pretrain.methods.attention_maps import attention_sheet, class_attention, has_class_attention


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Compare the features of backbones on the same patches with those of untrained networks."""

    help_groups: ClassVar = {
        "places": "input",
        "out": "output",
    }

    places: tyro.conf.Positional[tuple[Path, ...]]
    """Weights (NAME.pth, NAME.safetensors, other projects' too), checkpoints, run folders."""
    shards: Path = Path("shards")
    """Folder of shards, as `python -m patch_extraction` makes it; best with slides the run has not seen."""
    patches: Annotated[int | None, Range(2)] = None
    """Patches the numbers are made of (default 512, on a CPU 128); RankMe cannot exceed it."""
    out: Path = Path("inspection")
    """Folder for report.csv, report.html and the pictures."""


def inspect(config: InspectConfig) -> None:
    """Measure, draw, print the table and write the report.

    Raises:
        UserError: no place is given, one holds no backbone, the shards cannot be used, `out` cannot be made.
    """
    if not config.places:
        raise UserError("nothing to inspect; give weights files, checkpoints or run folders")
    validate(config)
    most = config.patches or feature_metrics.default_patches(_device())
    shard_set = open_shards(config.shards)
    subjects = [open_subject(place) for place in config.places]
    make_folder(config.out, "--out")
    first_of_arch = {subject.arch: subject for subject in reversed(subjects)}
    rows = [*subjects, *map(untrained, reversed(first_of_arch.values()))]

    sample_for = functools.cache(lambda crop: labelled_patches(shard_set, crop, most))
    results = [
        _examine(number, row, sample_for, shard_set, config.out) for number, row in enumerate(rows, start=1)
    ]

    sample = f"{len(sample_for(rows[0].crop).slides)} patches of {config.shards}"
    if missing := feature_metrics.missing_labels(results[0].measures):
        sample += f" ({missing})"
    print(f"{sample}\n\n{as_table(results)}\n")
    for result in results:
        for remark in result.remarks:
            print(f"{result.name}: {remark}")
    write_csv(config.out / "report.csv", results)
    write_html(config.out / "report.html", results, sample)
    print(f"report: {config.out / 'report.html'}, numbers: {config.out / 'report.csv'}")


def _examine(
    number: int, subject: LoadedBackbone, sample_for: Callable[[Crop], Sample], shard_set: ShardSet, out: Path
) -> InspectionResult:
    """Measure one backbone and save its pictures as `NUMBER-NAME-TITLE.png`."""
    device = _device()
    views = Views(ViewsConfig(), (), subject.mean, subject.std).to(device)
    sample = sample_for(subject.crop)
    with undisturbed(subject.trunk.to(device)):
        features_ND = feature_metrics.features_of(subject.trunk, sample.patch_BCHW, views.normalise)
    measures = feature_metrics.measure(features_ND, sample)
    most_rank = min(features_ND.shape)
    remarks = list(feature_metrics.alarms(measures, most_rank, subject.may_collapse).values())
    shown = {} if subject.samples_seen == 0 else _pictures(subject, shard_set, views, device)
    stem = f"{number}-{re.sub(r'[^A-Za-z0-9-]+', '_', Path(subject.name).name)}"
    places = {title: _saved(image, out / f"{stem}-{title}.png") for title, image in shown.items()}
    return InspectionResult(
        subject.name, subject.samples_seen, measures | {"most_rank": most_rank}, remarks, places
    )


def _pictures(
    subject: LoadedBackbone, shard_set: ShardSet, views: Views, device: torch.device
) -> dict[str, Image.Image]:
    """Make the pictures of a method, and attention maps of a ViT's class token."""
    view_BCHW: Tensor = views.normalise(sample_patches(shard_set, subject.crop, SAMPLES).to(device))
    networks = subject.method or subject.trunk
    shown: dict[str, Image.Image] = {}
    with undisturbed(networks.to(device)):
        if subject.method is not None:
            shown |= subject.method.show([view_BCHW], views.restore)
        if has_class_attention(subject.trunk) and "attention" not in shown:
            maps_BHhw = class_attention(subject.trunk, view_BCHW)
            shown["attention"] = attention_sheet(views.restore(view_BCHW), maps_BHhw)
    return shown


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _saved(image: Image.Image, path: Path) -> Path:
    with own_path(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def main() -> None:
    """Entry point of the command line."""
    config = parse(InspectConfig, "python -m ssl_pretrain.inspect")
    with explain_out_of_memory(ON_CPU):
        inspect(config)


if __name__ == "__main__":
    run(main)
