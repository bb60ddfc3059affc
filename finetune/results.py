"""Results of a run: pictures on the way, test scores and published weights at the end."""

from collections.abc import Sequence
from pathlib import Path

import torch

from finetune.datasets.dataset import AnnotatedData
from finetune.predict.in_memory import predict_tiles
from finetune.scoring.sheets import annotated_sheet, comparison_sheet, proposals_sheet
from finetune.scoring.tile_scores import score_tiles
from finetune.training.tile_loader import TileStream
from shared.files import write_json
from shared.model.detector_file import LoadedDetector
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.model.image_tensors import to_image
from shared.training.run_folder import Run
from shared.weights.weights_file import publish

TEST_SCORES = "test_scores.json"


def draw_augmented(run: Run, stream: TileStream, classes: Sequence[str], count: int = 8) -> None:
    """Draw the first samples of the stream as the network will get them."""
    samples = [stream[position] for position in range(count)]
    sheet = annotated_sheet(
        [views for views, _, _ in samples], [(xy, labels) for _, xy, labels in samples], classes
    )
    run.picture("augmented", sheet)


@torch.inference_mode()
def draw_proposals(run: Run, detector: DPAP2PNet, data: AnnotatedData, device: torch.device, step: int) -> None:
    """Draw the proposals that became cells on the first validation tile (else training tile)."""
    tile = (data.splits.get("val") or data.splits["train"])[0]
    views_KHWC = tile.read_views(detector.config.views)
    detector.eval()
    found = detector(to_image(views_KHWC).to(device)[None])
    labels_N = found.logits_BNC[0].argmax(-1)
    kept = labels_N != len(data.classes)
    stages = (found.proposals_N2, found.deformed_BN2[0], found.points_BN2[0])
    stages_3N2 = [points_N2[kept].cpu().numpy() for points_N2 in stages]
    sheet = proposals_sheet(views_KHWC[-1], stages_3N2, labels_N[kept].cpu().numpy(), data.classes)
    run.picture(f"proposals-{step:06d}", sheet)


def finish(run: Run, out: Path, data: AnnotatedData, device: torch.device) -> None:
    """Score best and last weights on the test split once, publish the best, print the paths of all results."""
    tiles = data.splits.get("test", [])
    scores = {}
    for name in ("last", "best") if tiles else ():
        detector = LoadedDetector.load(run.folder / f"{name}.pth", device)
        found = [each.cells() for each in predict_tiles(detector, tiles, data.mpp)]
        scores[name] = score_tiles(tiles, found, data)
        print(
            f"\n{name} weights (step {detector.metadata['step']}) on the test tiles, within {data.radius_um:g} um:"
        )
        print(scores[name].table())
        run.picture(f"comparison-{name}", comparison_sheet(tiles, found, data.classes))
    if scores:
        write_json(run.folder / TEST_SCORES, {name: each.as_dict() for name, each in scores.items()})
    publish(run.folder / "best.pth", out)
    print(f"\ndetector: {out}\ncurves: {run.folder}/metrics.jsonl and {run.folder}/tensorboard")
    print(f"pictures: {run.folder}/pictures (augmented, proposals-*, comparison-*)")
