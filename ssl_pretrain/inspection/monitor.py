"""Monitoring during training: feature metrics, pictures, and a sheet of augmented views."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import nn

from shared.reporting.pictures import contact_sheet
from shared.training.run_folder import Run
from shared.training.seeds import seed_batch
from ssl_pretrain.data.crops import Crop, cut
from ssl_pretrain.data.shard_set import ShardSet
from ssl_pretrain.data.views import Views
from ssl_pretrain.inspection import feature_metrics
from ssl_pretrain.inspection.probe_patches import labelled_patches, sample_patches, whole_patches
from ssl_pretrain.methods import Method

SAMPLES = 8
# Side of an image in the sheet of augmentations.
SHEET_SIDE = 160


class Monitor:
    """Measure and draw a method with the same patches and random numbers every time, without side effects on it.

    Only the first rank does so; the others wait for it.
    """

    def __init__(self, run: Run, shard_set: ShardSet, views: Views, crop: Crop, measures: bool) -> None:
        """Choose the patches, shown as `crop` would.

        Args:
            run: Where numbers and pictures go.
            shard_set: Where the patches come from.
            views: How they are normalised.
            crop: How large a part of a patch is seen, in which size.
            measures: Whether features are ever measured.

        Raises:
            UserError: a shard is damaged.
        """
        self.run, self.shard_set, self.views = run, shard_set, views
        self._said: set[str] = set()
        if run.writes:
            patches_BCHW = sample_patches(shard_set, crop, SAMPLES).to(views.mean.device)
            self.view_BCHW = views.normalise(patches_BCHW)
            most = feature_metrics.default_patches(views.mean.device)
            self.sample = labelled_patches(shard_set, crop, most) if measures else None

    def draw(self, method: Method, step: int) -> None:
        """Write `pictures/NAME-STEP.png` for every picture the method has to show; first of all, of its views."""
        if not self.run.writes:
            return
        with undisturbed(method):
            if step == 0:
                sheet = augmentation_sheet(self.shard_set, self.views, SAMPLES)
                self.run.picture(f"augmented-{step:09d}", sheet)
            for name, image in method.show([self.view_BCHW], self.views.restore).items():
                self.run.picture(f"{name}-{step:09d}", image)

    def measure(self, method: Method, step: int) -> None:
        """Log the metrics of the backbone's features; warn on stderr, once for each kind of problem."""
        if not self.run.writes or self.sample is None:
            return
        with undisturbed(method):
            features_ND = feature_metrics.features_of(
                method.backbone(), self.sample.patch_BCHW, self.views.normalise
            )
        measures = feature_metrics.measure(features_ND, self.sample)
        self.run.log(step, **{name: round(value, 4) for name, value in measures.items()})
        if missing := feature_metrics.missing_labels(measures):
            self._say("labels", f"note: {missing}")
        if step:  # an untrained network cannot do better
            alarms = feature_metrics.alarms(measures, min(features_ND.shape), method.may_collapse)
            for name, alarm in alarms.items():
                self._say(name, f"warning: after step {step:,} {alarm}")

    def _say(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            print(sentence, file=sys.stderr, flush=True)
        self._said.add(kind)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; restore its modes and all random generators afterwards.

    Inside, torch's generators begin with the same seed every time, nothing keeps gradients, and compiled parts run
    as they were written, as a new mode and batch size would have them compiled again.
    """
    modes = {module: module.training for module in network.modules()}
    devices = {parameter.device for parameter in network.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seed_batch(0, 0, 0)
            network.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def augmentation_sheet(shard_set: ShardSet, views: Views, count: int) -> Image.Image:
    """Rows of a patch and all its views, as a step would see them; `count` patches from all over the shards."""
    patches = whole_patches(shard_set, count)
    random = np.random.default_rng(0)
    samples = [cut(patch_CHW, views.crops, random) for patch_CHW in patches]
    crops = [torch.stack(same).to(views.mean.device) for same in zip(*samples, strict=True)]
    shown = [views.restore(view_BCHW).cpu() for view_BCHW in views(crops)]
    rows = [[patch_CHW, *(view_BCHW[row] for view_BCHW in shown)] for row, patch_CHW in enumerate(patches)]
    sides = [view_BCHW.shape[-1] for view_BCHW in shown]
    captions = ["patch", *(f"view {number}: {side} px" for number, side in enumerate(sides, start=1))]
    images = [Image.fromarray(image_CHW.permute(1, 2, 0).numpy()) for row in rows for image_CHW in row]
    title = "patches and their views, as the networks see them"
    return contact_sheet(images, len(captions), captions * count, SHEET_SIDE, title)
