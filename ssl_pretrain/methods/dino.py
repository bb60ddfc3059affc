"""Self-distillation: predict from a part of an image what a moving average of the network makes of the whole.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021. Numbers from the official
code (facebookresearch/dino: main_dino.py, and its README for ResNet-50).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import update_momentum
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from shared.cli import Range, validate
from shared.errors import UserError
from shared.training.schedules import cosine, linear
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.methods import Method, MethodConfig, Step
from ssl_pretrain.methods.attention_maps import attention_sheet, class_attention, has_class_attention
from ssl_pretrain.methods.trunks import (
    LEAST_SIZE,
    Encoder,
    check_arch,
    check_scale,
    check_size,
    create_trunk,
    is_vit,
)

# Views that the teacher sees.
GLOBAL = 2


@dataclass(frozen=True, kw_only=True)
class DINOConfig(MethodConfig):
    """Settings of DINO."""

    name: ClassVar[str] = "dino"
    arch: str
    """Timm name of the trunk: a ResNet or a plain ViT."""
    image_size: Annotated[int, Range(LEAST_SIZE)] = 224
    """Side of the two global crops in px."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest share of a patch's area in a global crop."""
    local_size: Annotated[int, Range(LEAST_SIZE)] = 96
    """Side of the local crops in px."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Smallest and largest share of a patch's area in a local crop."""
    local_crops: Annotated[int, Range(0)] = 8
    """Local crops of each patch, seen by the student alone."""
    blur: Annotated[tuple[float, float, float], Range(0, 1)] = (1.0, 0.1, 0.5)
    """Probability of a blur in the first and the second global view and in local ones."""
    solarise: Annotated[float, Range(0, 1)] = 0.2
    """Probability that the second global view is solarised."""
    drop_path: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of a ViT student's residual branches that are left out at random; the teacher leaves out none."""
    hidden_dim: Annotated[int, Range(1)] = 2048
    """Width of the head."""
    bottleneck_dim: Annotated[int, Range(1)] = 256
    """Length of the unit vectors that the head's last layer compares with its own."""
    output_dim: Annotated[int, Range(1)] = 65_536
    """Classes that the networks are free to fill with meaning."""
    norm_last_layer: bool = True
    """Keep the vectors of the last layer at unit length."""
    student_temperature: Annotated[float, Range(1e-3)] = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: Annotated[float, Range(1e-3)] = 0.04
    """Temperature of the teacher's softmax."""
    first_teacher_temperature: Annotated[float, Range(1e-3)] = 0.04
    """Initial temperature of the teacher."""
    temperature_samples: Annotated[int, Range(0)] = 0
    """Images over which it rises from there, linearly."""
    centre_momentum: Annotated[float, Range(0, 1)] = 0.9
    """Share of the old centre of the teacher's outputs in an update by a batch."""
    momentum: Annotated[float, Range(0, 1)] = 0.996
    """Share of the old weights in the first update of the teacher; the last one's is 1, on a cosine."""
    batch_norm_ranks: Annotated[int, Range(1)] = 8
    """Most ranks, neighbours, whose images a batch norm sees together (official: all, 8 in its README)."""
    frozen_samples: Annotated[int, Range(0)] = 0
    """Images over which the last layer stays as it was drawn."""

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Two global crops and some local ones, all bicubic."""
        first, second, local = self.blur
        return (
            Crop(size=self.image_size, scale=self.global_scale, blur=first),
            Crop(size=self.image_size, scale=self.global_scale, blur=second, solarise=self.solarise),
            Crop(size=self.local_size, scale=self.local_scale, blur=local, count=self.local_crops),
        )

    def _networks(self) -> "DINO":
        return DINO(self)

    def check(self) -> None:
        """Refuse networks that cannot be built and numbers that make no sense, with a UserError."""
        validate(self, "method.")
        check_arch("DINO", self.arch, resnets=True, vits=True)
        check_size("method.image-size", self.image_size, self.arch)
        check_size("method.local-size", self.local_size, self.arch)
        check_scale("method.global-scale", self.global_scale)
        check_scale("method.local-scale", self.local_scale)
        if self.drop_path and not is_vit(self.arch):
            raise UserError(f"--method.drop-path {self.drop_path} is for ViTs, not for {self.arch}; give 0")

    def temperature(self, samples: int) -> float:
        """Compute the teacher's temperature after so many images."""
        if samples >= self.temperature_samples:
            return self.teacher_temperature
        share = samples / self.temperature_samples
        return linear(self.first_teacher_temperature, self.teacher_temperature, share)


class DINO(Method):
    """A student, and a teacher that is its moving average and sees the global views alone.

    The teacher stays in training mode, as in the official code: its batch norms normalise by their batch.
    """

    def __init__(self, config: DINOConfig) -> None:
        """Build both networks with equal weights."""
        super().__init__()
        self.config = config
        self.student = _encoder(config, config.drop_path)
        self.teacher = _encoder(config)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.criterion = DINOLoss(
            config.output_dim, student_temp=config.student_temperature, center_momentum=config.centre_momentum
        )
        self._measures: dict[str, Tensor] = {}

    def loss(self, views: list[Tensor], step: Step) -> Tensor:
        """Cross-entropy of every student view with every teacher view but itself; then the centre moves."""
        student_out = self.student(views)
        with torch.no_grad():
            teacher_out = self.teacher(views[:GLOBAL])
        with torch.autocast(student_out.device.type, enabled=False):
            temperature = self.config.temperature(step.samples)
            entropy = mean_entropy((teacher_out.float() - self.criterion.center[0]) / temperature)
            loss: Tensor = self.criterion(
                list(teacher_out.float().chunk(GLOBAL)),
                list(student_out.float().chunk(len(views))),
                teacher_temp=temperature,
            )
        # Both global views are in as many pairs: cross-entropy is entropy plus divergence on average, too.
        self._measures = {"teacher_entropy": entropy, "divergence": loss.detach() - entropy}
        return loss

    def before_update(self, step: Step) -> None:
        """Hold the last layer in the beginning."""
        if step.samples < self.config.frozen_samples:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, step: Step) -> None:
        """Let the teacher follow: its parameters only, batch norms' statistics are its own."""
        update_momentum(self.student, self.teacher, cosine(self.config.momentum, 1.0, step.share))

    def measures(self) -> dict[str, Tensor]:
        """Diagnostics of the last pass in nats: `teacher_entropy`, 0 for a single class, ln classes if uniform;
        `divergence` (Kullback-Leibler) of the student from the teacher, 0 if there is nothing left to learn.
        """
        return self._measures

    def checkpoint_activations(self) -> None:
        """Compute activations of the trained trunk again in the backward pass instead of keeping them."""
        self.student.checkpoint_activations()

    @torch.no_grad()
    def show(self, views: list[Tensor], restore: Callable[[Tensor], Tensor]) -> dict[str, Image.Image]:
        """Make the sheet `attention` of a ViT's class token."""
        if not has_class_attention(self.backbone()):
            return {}
        (image_BCHW,) = views
        return {"attention": attention_sheet(restore(image_BCHW), class_attention(self.backbone(), image_BCHW))}

    def backbone(self) -> nn.Module:
        """Return the teacher's trunk, which does better than the student's (section 5.2 of the paper)."""
        return self.teacher.trunk

    def trunks(self) -> list[nn.Module]:
        """Those of student and teacher."""
        return [self.student.trunk, self.teacher.trunk]


@torch.no_grad()
def mean_entropy(logits_NK: Tensor) -> Tensor:
    """Mean over rows of the entropy of their softmax (scalar, nats)."""
    log_NK = logits_NK.log_softmax(dim=-1)
    entropy: Tensor = -torch.linalg.vecdot(log_NK.exp(), log_NK).mean()
    return entropy


class Head(DINOProjectionHead):  # type: ignore[misc]  # lightly is untyped
    """The head, whose last layer is computed in float32 whatever autocast selects.

    Its outputs are cosines, which the loss divides by 0.04: in bfloat16 they would be off by up to 0.1 then.
    """

    def forward(self, feature_BD: Tensor) -> Tensor:
        """Features (B, D) -> cosines (B, K) with the last layer's directions."""
        bottleneck_BD = self.layers(feature_BD)
        with torch.autocast(feature_BD.device.type, enabled=False):
            cosine_BK: Tensor = self.last_layer(F.normalize(bottleneck_BD.float(), dim=-1))
        return cosine_BK


def _encoder(config: DINOConfig, drop_path: float = 0.0) -> Encoder:
    trunk = create_trunk(config.arch, config.image_size, drop_path)
    with warnings.catch_warnings():
        # lightly's head keeps torch's older weight norm, whose names of tensors are the official ones.
        warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
        head = Head(
            trunk.num_features,
            config.hidden_dim,
            config.bottleneck_dim,
            config.output_dim,
            norm_last_layer=config.norm_last_layer,
        )
    return Encoder(trunk, head)
