"""Size of a network: its parameters, and the operations of a pass, counted without computing anything."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module, trained_only: bool = False) -> int:
    """Count the parameters of a network, or those that get gradients."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trained_only)


@contextmanager
def counted_operations() -> Iterator[FlopCounterMode]:
    """Within, tensors have no values, and products are counted: `get_total_flops()`, two for a multiply-add.

    Attention is counted as the two products that it is made of: not every release of torch counts its fused form.
    """
    fake, products = FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH)
    with fake, products, FlopCounterMode(display=False) as operations:
        yield operations
