"""GPU memory of a recipe's training, counted without a GPU."""

from dataclasses import dataclass

import torch

from shared.training.network_size import count_parameters
from shared.training.peak_memory import counted_memory
from ssl_pretrain.methods import Method, Step
from ssl_pretrain.optim.optimizers import AdamW
from ssl_pretrain.recipe import PretrainingRecipe

GIB = 2**30
# CUDA's context, workspaces of cuDNN and cuBLAS, buffers of NCCL: our estimate.
OVERHEAD = 2 * GIB
# What PyTorch's allocator can hand out of a GPU's memory before gaps between tensors are too small: our estimate.
USABLE = 0.95


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU."""

    state: int
    """Weights, buffers, gradients and the optimiser's moments: the same whatever the micro-batch."""
    images: int
    """Crops, activations and casts of weights at the end of the forward pass of a micro-batch."""

    @property
    def total(self) -> int:
        """With what CUDA takes for itself."""
        return self.state + self.images + OVERHEAD

    def fits(self, gigabytes: int) -> bool:
        """Return True if a GPU sold with this much memory has enough."""
        return self.total <= USABLE * gigabytes * GIB

    def describe(self, micro_batch: int, sold: tuple[int, ...]) -> str:
        """Format a line: the parts, and which of the GPUs that are sold have enough."""
        parts = f"{self.state / GIB:.1f} of weights and optimiser, {self.images / GIB:.1f} of {micro_batch} images"
        fits = ", ".join(f"{'fits' if self.fits(size) else 'does not fit'} {size} GB" for size in sold)
        return f"memory  {self.total / GIB:.1f} GiB a GPU (estimated; {parts}): {fits}{self._advice(max(sold))}"

    def _advice(self, largest: int) -> str:
        if self.fits(largest):
            return ""
        if self.state + OVERHEAD > USABLE * largest * GIB:
            return "; weights and optimiser alone are too large, and are not divided among GPUs here (FSDP)"
        return "; lower --micro-batch, or add --checkpoint-activations"


def estimate_memory(recipe: PretrainingRecipe, micro_batch: int) -> MemoryEstimate:
    """Memory for passes over `micro_batch` images; nothing is computed."""
    crops = [crop for crop in recipe.method.crops for _ in range(crop.count)]
    with torch.random.fork_rng(devices=[]):
        method = recipe.method.build()
        if recipe.checkpoint_activations:
            method.checkpoint_activations()
        with counted_memory() as memory:
            views = [torch.zeros(micro_batch, 3, crop.size, crop.size) for crop in crops]
            method.loss(views, Step(number=0, samples=0, total=1)).backward()
    gradients = 4 * count_parameters(method, trained_only=True)
    return MemoryEstimate(checkpoint_bytes(recipe, method) + gradients, memory.peak)


def checkpoint_bytes(recipe: PretrainingRecipe, method: Method) -> int:
    """Bytes of weights, buffers and the optimiser's moments."""
    moments = 2 if isinstance(recipe.optimiser, AdamW) else 1  # AdamW keeps two numbers a weight, SGD and LARC one
    state = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    total: int = state + 4 * moments * count_parameters(method, trained_only=True)
    return total
