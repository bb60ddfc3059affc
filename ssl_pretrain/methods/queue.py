"""Representations of earlier batches, kept for the next ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """The newest unit vectors, in a ring that begins as random ones; part of the method's state.

    Its pointer stays on the device, so that no host wait is needed.
    """

    rows_ND: Tensor
    place: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows_ND", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, new_BD: Tensor) -> None:
        """Replace the oldest rows; of more than there is room for, the last remain."""
        length = len(self.rows_ND)
        new_BD = new_BD[-length:]
        places_B = (self.place + torch.arange(len(new_BD), device=new_BD.device)) % length
        self.rows_ND.index_copy_(0, places_B, new_BD.to(self.rows_ND.dtype))
        self.place.copy_((self.place + len(new_BD)) % length)
