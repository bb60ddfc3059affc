"""A method without chance and plain gradient descent: what the loop does with them can be computed by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.views import ViewsConfig
from ssl_pretrain.methods import Method, MethodConfig, Step
from ssl_pretrain.optim import optimizers
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.recipes import MAE_DEMO

SAMPLES = 40


class Line(Method):
    """Linear in the pixels; the loss is a mean over images, so that of a whole batch is the mean of its parts'."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 4)
        self.draws: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def loss(self, views: list[Tensor], step: Step) -> Tensor:
        self.draws.append(torch.rand(1).item())  # what a mask would be drawn with
        outputs_BC = self.linear(views[0].flatten(1))
        self.dtypes.add(outputs_BC.dtype)
        return (outputs_BC.float() - 1).square().mean()

    def backbone(self) -> nn.Module:
        return self.linear


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Stands in for `mae.MAEConfig`."""

    name: ClassVar[str] = "stub"
    arch: str = "vit_tiny_patch16_224"
    image_size: int = 16
    built: ClassVar[list[Line]] = []

    is_mean_over_images: ClassVar[bool] = True
    batch_norm_ranks: ClassVar[int] = 1

    @property
    def crops(self) -> tuple[Crop, ...]:
        return (Crop(size=16, scale=(0.5, 1.0)),)

    def check(self) -> None:
        pass

    def build(self) -> Line:
        self.built.append(Line())
        return self.built[-1]


class Descent(torch.optim.SGD):
    """Gradient descent that remembers its learning rates."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, lr=1e9)  # the loop has to set it
        self.rates: list[float] = []

    def step(self, closure: object = None) -> None:
        self.rates.append(self.param_groups[0]["lr"])
        super().step()


@dataclass(frozen=True, kw_only=True)
class Optimiser(optimizers.OptimizerConfig):
    """Stands in for the optimiser's config."""

    built: ClassVar[list[Descent]] = []

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        self.built.append(Descent(network.parameters()))
        return self.built[-1]


def changed(config: object, **fields: object):
    return type(config)(**{**vars(config), **fields})


def recipe(shards: Path, folder: Path, **fields: object) -> PretrainingRecipe:
    """Six steps, each on all images of an epoch, whatever the number of ranks; only their order differs then."""
    told = {
        "name": "stub",
        "shards": shards,
        "run_dir": folder / "run",
        "out": folder / "out.pth",
        "method": Config(),
        "views": ViewsConfig(horizontal_flip=0),
        "optimiser": Optimiser(base_lr=3e-3, warmup_samples=2 * SAMPLES),
        "batch_size": SAMPLES,
        "samples_seen": 6 * SAMPLES,
        "loader": changed(MAE_DEMO.loader, workers=0),
        "log_every": 2,
        "checkpoint_every": 100,
        "monitor_every": 0,  # its backbone takes no images
    }
    return changed(MAE_DEMO, **{**told, **fields})
