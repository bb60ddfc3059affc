"""A GPU that is not there: torch's fake tensors on `cuda:0`, with a record of what a real one would have to do.

Shapes, dtypes and devices are computed, values are not. What needs a value on the host (`.item()`, `nonzero`,
boolean masks) raises; copies between host and device are recorded. The engine of `backward` asks the driver, so
gradients are made up: every leaf that a loss reaches gets one.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Network = TypeVar("Network", bound=nn.Module)
GPU = torch.device("cuda:0")
aten = torch.ops.aten
# Place of what is copied; `to` is a whole operation in inference mode.
COPIES = {aten._to_copy: 0, aten.copy_: 1, aten.to: 0}
VIEWS = {aten._unsafe_view.default}  # launches nothing either
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution}


class Watch(TorchDispatchMode):
    """What runs on the pretended GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.casts = 0
        self.uploads: list[tuple[int, ...]] = []
        """Shapes copied to the device while the host goes on."""
        self.waits: list[str] = []
        """Copies that the host waits for: all to it, and those from it that are not `non_blocking`."""
        self.products: Counter[torch.dtype] = Counter()
        """Matrix products and convolutions by the dtype of their result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _devices((args, kwargs)), _devices(result)
        if "cuda" in given | made and not func.is_view and func.namespace != "prim" and func not in VIEWS:
            self.launches += 1
        if func.overloadpacket in COPIES and given | made == {"cpu", "cuda"}:
            goes_on = (kwargs or {}).get("non_blocking", any(each is True for each in args))
            self._copied(args[COPIES[func.overloadpacket]], goes_on)
        elif given == {"cpu", "cuda"} and any(each.ndim and not each.is_cuda for each in _tensors((args, kwargs))):
            self._copied(next(each for each in _tensors((args, kwargs)) if each.ndim and not each.is_cuda), False)
        self.casts += func is aten._to_copy.default and given == made == {"cuda"}
        if func.overloadpacket in PRODUCTS:
            self.products[result.dtype] += 1
        return result

    def _copied(self, source: Tensor, goes_on: bool) -> None:
        shape = tuple(source.shape)
        if source.device.type == "cpu" and goes_on:
            self.uploads.append(shape)
        else:
            caller = next(
                frame
                for frame in reversed(traceback.extract_stack())
                if "/site-packages/" not in frame.filename and frame.filename != __file__
            )
            self.waits.append(f"{shape} from {source.device.type} at {caller.filename}:{caller.lineno}")


def _devices(values: object) -> set[str]:
    return {tensor.device.type for tensor in _tensors(values)}


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def pretended_gpu() -> Iterator[Watch]:
    """Within, `cuda:0` can be used as far as nothing needs a value."""
    with ExitStack() as stack:
        for name, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", False),
            ("torch.cuda.is_bf16_supported", True),
            ("torch.cuda.get_device_capability", (8, 0)),
        ):
            stack.enter_context(mock.patch(name, lambda *_, value=value, **__: value))
        for name, kernel in KERNELS.items():
            stack.enter_context(mock.patch(f"torch.{name}", kernel))
        stack.enter_context(mock.patch.object(Tensor, "backward", backward))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Watch())


def moved(network: Network) -> Network:
    """Move a network, built outside, to the pretended GPU; `Module.to` cannot move to fake tensors."""
    done: dict[int, Tensor] = {}  # a tensor that two modules share stays shared
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = done.setdefault(id(tensor), _moved(tensor))
    return network


def _moved(tensor: Tensor) -> Tensor:
    there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there


def backward(loss: Tensor, *_: object, **__: object) -> None:
    """Gradients without values for all leaves below a loss."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaf.grad = torch.empty_like(leaf) if leaf.grad is None else leaf.grad.add_(1)
        nodes += [function for function, _ in node.next_functions]


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], dtype=torch.float32), x.new_empty(x.shape[1], dtype=torch.float32)


def _gathered(x: Tensor, mean_RC: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean_RC[0]), torch.empty_like(mean_RC[0])


# torch's fake tensors do not know the results of these.
KERNELS: dict[str, Callable] = {
    "batch_norm_stats": _statistics,
    "batch_norm_gather_stats_with_counts": _gathered,
    "batch_norm_elemt": lambda x, *_: torch.empty_like(x),
}
