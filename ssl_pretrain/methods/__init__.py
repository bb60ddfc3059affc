"""What a self-supervised method is to the training loop; one file a method beside this."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor, nn


class Method(nn.Module):
    """Networks, loss and state of a method.

    Everything that training changes is a parameter or a buffer, so that `state_dict` is the whole state.
    """

    def forward(self, views: list[Tensor], step: int) -> Tensor:
        """`loss`: DistributedDataParallel only watches calls of the module itself."""
        return self.loss(views, step)

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        """The loss (scalar, float32) of a batch.

        Args:
            views: One normalised (B, 3, H, W) for each crop of the recipe.
            step: Optimiser steps done so far.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after every optimiser step: momentum updates and the like."""

    def backbone(self) -> nn.Module:
        """The timm trunk that is exported."""
        raise NotImplementedError

    def show(self, views: list[Tensor], restore: Callable[[Tensor], Tensor]) -> dict[str, Image.Image]:
        """Pictures for people, by name.

        Args:
            views: A few normalised images, as for `loss`.
            restore: From normalised views to uint8 images.
        """
        return {}

    def export(self) -> dict[str, Tensor]:
        """The trunk's tensors under timm's names: they load strictly into `create_model(..., num_classes=0)`."""
        return dict(self.backbone().state_dict())
