"""Layer-wise adaptive rate scaling over gradient descent, as the official SwAV uses it (apex.parallel.LARC)."""

import torch
from torch import Tensor

# Added to the denominator of a layer's rate (apex).
EPSILON = 1e-8


class LARC(torch.optim.SGD):
    """SGD whose steps are, for each tensor, a share of the tensor's own size.

    Before the momentum, each gradient g of weights w becomes `(g + decay w) trust |w| / (|g| + decay |w| + eps)`;
    of all tensors, biases and batch norms too. One whose norm or gradient is 0 takes a plain step without
    decay. Nothing waits for the device.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, trust: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum)
        self.trust = trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; gradients hold what the momentum was given afterwards."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            self._adapt([p for p in group["params"] if p.grad is not None], decay)
            group["weight_decay"] = 0.0  # it is in the gradient now
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay

    def _adapt(self, parameters: list[Tensor], decay: float) -> None:
        if not parameters:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        weight_P = torch.stack(torch._foreach_norm(parameters))
        gradient_P = torch.stack(torch._foreach_norm(gradients))
        adapts_P = (weight_P != 0) & (gradient_P != 0)
        rate_P = self.trust * weight_P / (gradient_P + weight_P * decay + EPSILON)
        if decay:
            decay_P = torch.where(adapts_P, decay, 0.0)
            torch._foreach_add_(gradients, torch._foreach_mul(parameters, list(decay_P.unbind())))
        torch._foreach_mul_(gradients, list(torch.where(adapts_P, rate_P, 1.0).unbind()))
