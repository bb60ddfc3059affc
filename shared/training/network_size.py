"""Counting the operations of a network without computing anything."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def counted_operations() -> Iterator[FlopCounterMode]:
    """Within, tensors have no values, and products are counted: `get_total_flops()`, two for a multiply-add.

    Attention is counted as the two products that it is made of: not every release of torch counts its fused form.
    """
    fake, products = FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH)
    with fake, products, FlopCounterMode(display=False) as operations:
        yield operations
