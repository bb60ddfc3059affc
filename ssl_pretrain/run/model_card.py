"""Model card `NAME.md` beside `NAME.pth`: data, training and loading of the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import atomic_path, keep_aside
from shared.weights.vit_families import timm_options

LOADING = """```python
import timm, torch
tensors = torch.load("{name}", weights_only=True)["state_dict"]
model = timm.create_model("{arch}", {options}num_classes=0).eval()
model.load_state_dict(tensors)
```"""
LOADING_SAFETENSORS = """```python
import timm, safetensors.torch
tensors = safetensors.torch.load_file("{name}")
model = timm.create_model("{arch}", {options}num_classes=0).eval()
model.load_state_dict(tensors)
```"""


def write_card(weights: Path, metadata: Mapping[str, Any]) -> None:
    """Write the card beside a weights file; a text of that name that is no card of the same run is kept as .bak.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    path = weights.with_suffix(".md")
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(card(weights.name, metadata), encoding="utf-8")
            if path.exists() and str(metadata["run_id"]) not in path.read_text(encoding="utf-8", errors="replace"):
                keep_aside(path)
    except OSError as error:
        raise UserError(
            f"cannot write the model card {path}: {error.strerror}; make room and try again"
        ) from error


def card(name: str, metadata: Mapping[str, Any]) -> str:
    """Format the card of the weights file `name` with such metadata (see `export.py`)."""
    rows = "\n".join(f"| {title} | {value} |" for title, value in _facts(metadata).items())
    mean, std = (", ".join(f"{value:g}" for value in metadata[part]) for part in ("mean", "std"))
    name_in_timm, options = _timm_call(metadata)
    loading = LOADING_SAFETENSORS if name.endswith(".safetensors") else LOADING
    return f"""# {name}

`{metadata["arch"]}`, pre-trained by the method `{metadata["method"]}` with the recipe `{metadata["recipe"]}`.

| | |
|---|---|
{rows}

## Loading

{loading.format(name=name, arch=name_in_timm, options=options)}

It takes RGB images in 0..1, (B, 3, {metadata["image_size"]}, {metadata["image_size"]}) in training, \
less the mean ({mean}), divided by the deviation ({std}).

`python -m finetune --init {name}` reads these numbers from the file.
"""


def _timm_call(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the architecture in timm, and the options that its `create_model` needs."""
    name, options = timm_options(metadata["arch"])
    if name.startswith("vit"):
        options = {**options, "img_size": metadata["image_size"]}
    return name, "".join(f"{option}={value}, " for option, value in options.items())


def _facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    changes = "; ".join(
        f"{change['setting']} {change['before']} -> {change['now']} after step {change['after_step']:,}"
        for change in metadata.get("changes", [])
    )
    return {
        **({"Continued from": _init(metadata["init"])} if "init" in metadata else {}),
        "Length": f"{metadata['samples_seen']:,} images in {metadata['steps']:,} steps",
        "Batch": _batch(metadata),
        "Data": _data(metadata),
        "Biomarkers": _biomarkers(metadata),
        "Harvest": ", ".join(f"{name} {value}" for name, value in metadata["harvest"].items()) or "unknown",
        "Mean, deviation": " / ".join(
            ", ".join(f"{value:.4f}" for value in metadata[part]) for part in ("mean", "std")
        ),
        **({"Changed on resume": changes} if changes else {}),
        "Code": f"git {metadata['git_commit']}, run {metadata['run_id']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in metadata["versions"].items()),
    }


def _init(init: Mapping[str, Any]) -> str:
    return f"`{init['file']}` ({init['found']}; SHA-256 {init['sha256'][:16]}...), {init['fresh']} fresh"


def _batch(metadata: Mapping[str, Any]) -> str:
    batch, at_once = metadata["batch_size"], metadata["images_at_once"]
    if at_once == batch:
        return f"{batch:,} images"
    return (
        f"{batch:,} images, accumulated from {at_once:,} at once: only so many share batch norms and what "
        "else the loss takes from a batch"
    )


def _data(metadata: Mapping[str, Any]) -> str:
    slides = f" of {metadata['slides']:,} slides" if metadata["slides"] else ""
    return f"{metadata['patches']:,} patches{slides}{_undecodable(metadata)}"


def _undecodable(metadata: Mapping[str, Any]) -> str:
    """Format number and names of the images that neighbours replaced; cards of older weights have none."""
    count, named = metadata.get("undecodable", 0), metadata.get("undecodable_images", [])
    if not count:
        return ""
    names = ", ".join([*(f"`{name}`" for name in named), *(["..."] if count > len(named) else [])])
    return f"; {count:,} could not be decoded and were replaced by their neighbours: {names}"


def _biomarkers(metadata: Mapping[str, Any]) -> str:
    """Names and counts as the shards' index has them."""
    known = [
        f"{name or '(none)'}: {counts['patches']:,} patches of {counts['slides']:,} slides"
        for name, counts in metadata["biomarkers"].items()
    ]
    return "; ".join(known) or "unknown"
