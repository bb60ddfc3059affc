"""Results of a run: pictures on the way, test scores and published weights at the end."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.predict.in_memory import predict_tiles
from finetune.scoring.sheets import annotated_sheet, comparison_sheet, proposals_sheet
from finetune.scoring.tile_scores import score_tiles
from finetune.training.tile_loader import TileStream
from shared.files import write_json
from shared.model.cells import Cells
from shared.model.detector_file import LoadedDetector, decoded_by
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


def draw_progress(run: Run, detector: LoadedDetector, data: AnnotatedData, step: int) -> None:
    """Draw what a detector finds on the first validation tile (else training tile)."""
    tile = (data.splits.get("val") or data.splits["train"])[0]
    detector.network.eval()
    if isinstance(detector.network, DPAP2PNet):
        run.picture(f"proposals-{step:06d}", _proposals(detector.network, tile, detector.device, data.classes))
    else:
        found = [each.cells() for each in predict_tiles(detector, [tile], data.mpp)]
        run.picture(f"cells-{step:06d}", comparison_sheet([tile], found, data.classes))


@torch.inference_mode()
def _proposals(network: DPAP2PNet, tile: Tile, device: torch.device, classes: Sequence[str]) -> Image.Image:
    """Draw the proposals that became cells."""
    views_KHWC = tile.read_views(network.config.views)
    found = network(to_image(views_KHWC).to(device)[None])
    labels_N = found.logits_BNC[0].argmax(-1)
    kept = labels_N != len(classes)
    stages = (found.proposals_N2, found.deformed_BN2[0], found.points_BN2[0])
    stages_3N2 = [points_N2[kept].cpu().numpy() for points_N2 in stages]
    return proposals_sheet(views_KHWC[-1], stages_3N2, labels_N[kept].cpu().numpy(), classes)


def score_weights(
    folder: Path, out: Path, data: AnnotatedData, device: torch.device, decoder: str | None = None
) -> dict[str, list[Cells]]:
    """Score the last and the best weights of a run on the test tiles; returns the cells found.

    Args:
        folder: The run.
        out: Folder of `test_scores.json`.
        data: Annotated tiles.
        device: To compute on.
        decoder: Other decoder of the detector's maps.
    """
    tiles, scores, cells = data.splits["test"], {}, {}
    for name in ("last", "best"):
        detector = decoded_by(LoadedDetector.load(folder / f"{name}.pth", device), decoder)
        cells[name] = [each.cells() for each in predict_tiles(detector, tiles, data.mpp)]
        scores[name] = score_tiles(tiles, cells[name], data)
        step = detector.metadata["step"]
        print(f"\n{name} weights (step {step}) on the test tiles, within {data.radius_um:g} um:")
        print(scores[name].table())
    write_json(out / TEST_SCORES, {name: each.as_dict() for name, each in scores.items()})
    return cells


def finish(run: Run, out: Path, data: AnnotatedData, device: torch.device) -> None:
    """Score best and last weights on the test split once, publish the best, print the paths of all results."""
    tiles = data.splits.get("test", [])
    if tiles:
        for name, found in score_weights(run.folder, run.folder, data, device).items():
            run.picture(f"comparison-{name}", comparison_sheet(tiles, found, data.classes))
    publish(run.folder / "best.pth", out)
    print(f"\ndetector: {out}\ncurves: {run.folder}/metrics.jsonl and {run.folder}/tensorboard")
    print(f"pictures: {run.folder}/pictures (augmented, proposals-* or cells-*, comparison-*)")
