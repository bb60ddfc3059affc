"""`python -m tests.gpu`: what `make test-gpu` and `make bench-gpu` need, or one sentence on what is missing."""

import sys

import torch
import torchvision

LEAST_GB = 16


def missing() -> str:
    """Why GPU tests cannot run on this machine; empty if they can."""
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA; install one with, see pytorch.org"
    if not torch.cuda.is_available():
        return (
            "torch finds no GPU on this machine (see nvidia-smi); run this where there is one (srun --gpus 1). "
            "`make test` has the same steps on a pretended GPU"
        )
    if not torch.cuda.is_bf16_supported():
        return f"a {torch.cuda.get_device_name()} cannot compute in bfloat16; use an A100 or newer"
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
    if gigabytes < LEAST_GB:
        return f"a GPU with {gigabytes:.0f} GB is too small, {LEAST_GB} are needed"
    return ""


def main() -> int:
    """Print what the machine has, or what it lacks; 0 if it will do, else 2."""
    if sentence := missing():
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
