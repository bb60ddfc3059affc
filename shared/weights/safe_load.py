"""Reading tensors from files of torch.save and safetensors, without running code that a file may carry."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from shared.errors import UserError

# MAE's and DINO's training states keep their command line in an argparse.Namespace. PyTorch's restricted
# unpickler makes one by setting its attributes to plain values; nothing of the class runs, so it is harmless.
HARMLESS = (argparse.Namespace,)
BEGINNINGS = (b"PK", b"\x80\x02")  # of what torch.save writes, now and before 1.6


def load_content(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """Load the named content of a file, on the CPU, and the text of a .safetensors' metadata, if any.

    Raises:
        UserError: cut short; holds anything but tensors, plain values and an argparse.Namespace; no names.
    """
    return _load_safetensors(path) if path.suffix == ".safetensors" else (_load_torch(path), None)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _load_torch(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(list(HARMLESS)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript")  # it is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:  # of the machine, not of the file
        raise UserError(f"{path} cannot be read now ({first_line(error)}); try again") from error
    except Exception as error:  # torch raises a dozen types, with advice that would be unsafe to follow
        raise UserError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors under names")
    return content


def _refusal(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(2) not in BEGINNINGS:
            return f"{path} is no file of torch.save; give weights, as .pth or .safetensors"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, which is not run; give the tensors of its state_dict"
    foreign = re.search(r"Unsupported (?:global|class|type)\S*:?\s+(?:GLOBAL )?([\w.]+)", str(error))
    if foreign is None:
        return f"{path} is cut short or holds more than tensors, so it is not loaded; copy it again"
    return (
        f"{path} holds {foreign[1]} beside its tensors, and loading that could run code; if you trust its source, "
        "load it in Python with weights_only=False, torch.save the tensors alone and give that file"
    )


def _load_safetensors(path: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("metadata")
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
