"""Interface of self-supervised methods to the training loop; one module per method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor, nn

from ssl_pretrain.data.crops import Crop
from ssl_pretrain.methods.trunks import compile_trunk


@dataclass(frozen=True)
class Step:
    """Position of a step in the run; schedules are functions of the images seen."""

    number: int
    """Optimiser steps done before it."""
    samples: int
    """Images seen before it."""
    total: int
    """Images of the whole run."""

    @property
    def share(self) -> float:
        """Completed share of the run, 0 in its first step."""
        return self.samples / self.total


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of the methods' settings."""

    name: ClassVar[str]
    """Name in weights and model cards."""
    fresh: ClassVar[str] = "head"
    """Parts beside the trunk, which start fresh where it goes on from weights."""
    is_mean_over_images: ClassVar[bool] = False
    """True if the loss of a batch is the mean of the losses of its parts."""

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Crops of each patch."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse networks that cannot be built and numbers out of range, with a UserError."""
        raise NotImplementedError

    def build(self) -> "Method":
        """Build the networks with fresh weights, drawn from torch's generator.

        Raises:
            UserError: `check` refuses the settings.
        """
        self.check()
        return self._networks()

    def _networks(self) -> "Method":
        raise NotImplementedError

    def advice(self, images: int) -> str | None:
        """Advice to users whose ranks together handle this number of images in one pass; None: there is none."""
        return None


class Method(nn.Module):
    """Networks, loss and state of a method.

    Everything that training changes is a parameter or a buffer, so that `state_dict` is the whole state, and
    the same on every rank but for the running statistics of batch norms (the first rank's are kept).
    """

    may_collapse = True
    """True if a constant representation can minimise the loss (representation collapse)."""

    def forward(self, views: list[Tensor], step: Step) -> Tensor:
        """`loss`: DistributedDataParallel only watches calls of the module itself."""
        return self.loss(views, step)

    def loss(self, views: list[Tensor], step: Step) -> Tensor:
        """Compute the loss (scalar, float32) of a batch.

        Args:
            views: One normalised (B, 3, H, W) for each crop of the recipe.
            step: The step that it is a part of.
        """
        raise NotImplementedError

    def before_update(self, step: Step) -> None:
        """Set gradients of frozen parts to None; called when the gradients of a step are complete."""

    def after_step(self, step: Step) -> None:
        """Update momentum networks and the like; called after every optimiser step."""

    def measures(self) -> dict[str, Tensor]:
        """Diagnostics of the last pass, by name: scalars on the device, without synchronisation.

        They are no part of the state, and nothing that is trained depends on them.
        """
        return {}

    def backbone(self) -> nn.Module:
        """Return the timm trunk that is exported."""
        raise NotImplementedError

    def trunks(self) -> list[nn.Module]:
        """Return the timm trunks that run in a step."""
        return [self.backbone()]

    def compile_trunks(self) -> None:
        """Have torch compile what takes the time; names of tensors stay."""
        for trunk in self.trunks():
            compile_trunk(trunk)

    def checkpoint_activations(self) -> None:
        """Compute activations of the trained trunk again in the backward pass instead of keeping them."""
        raise NotImplementedError

    def show(self, views: list[Tensor], restore: Callable[[Tensor], Tensor]) -> dict[str, Image.Image]:
        """Pictures for people, by name.

        Args:
            views: A few normalised images, as for `loss`.
            restore: From normalised views to uint8 images.
        """
        return {}

    def export(self) -> dict[str, Tensor]:
        """Return the trunk's tensors by timm's names, to load strictly into `create_model(..., num_classes=0)`."""
        return dict(self.backbone().state_dict())
