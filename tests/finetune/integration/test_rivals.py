"""The rivals as users meet them: trained, stopped, resumed, scored, predicted with, counted with, refused."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import Detector
from finetune.__main__ import main
from finetune.datasets import DataOptions
from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.evaluate import EvaluateConfig, evaluate
from finetune.predict.in_memory import cells_of
from finetune.predict.search.tiling import tiling_of
from finetune.recipes import RECIPES, RIVALS
from finetune.scoring.metrics import score_cells
from finetune.step import update
from finetune.training.augment import AugmentConfig
from finetune.training.initialisation import initial_detector, pretrained_batch_norms
from finetune.training.objective import Targets
from finetune.training.optimiser import create_optimiser
from finetune.training.state import TrainingState
from finetune.training.tile_loader import Batch
from patch_extraction.counters.base import choose_counter
from shared.errors import UserError
from shared.model.cells import Cells
from shared.model.detector_file import LoadedDetector, decoded_by, load_detector, network_of, save_detector
from shared.model.rivals.rival_detector import RivalConfig, RivalDetector
from shared.samples.sample_slides import write_tiles
from shared.training.precision import autocast
from shared.weights.weights_file import load_into, read
from shared.wsi.image_source import Picture
from tests.benchmarks.seams import agreement
from tests.conftest import Command, InProcess

NAMES = [recipe.name for recipe in RIVALS]
TINY = ("--init", "random", "--batch-size", 2, "--augment.crop", 64, "--workers", 0, "--images", 6)


def rival(name: str, **changes) -> RivalDetector:
    torch.manual_seed(0)
    network = RECIPES[name].network
    fields = {"network": network.rival, "decoder": network.decoder, "mpp": 0.5, "classes": 2, **changes}
    detector = network_of(RivalConfig(**fields).with_trunk(""))
    assert isinstance(detector, RivalDetector)
    return detector.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(2, 1, 1), side=160, tiles_per_slide=1)
    return folder


@pytest.mark.parametrize(
    "name", ["ucsrnet", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "ucsrnet")]
)
def test_a_rival_is_trained_resumed_scored_and_predicted_with(
    name: str, data: Path, command: Command, tmp_path: Path
) -> None:
    words = (name, "--data", data, *TINY)
    done = command("finetune", *words, "--max-steps", 2, "--checkpoint-every", 1, timeout=1500)
    assert done.returncode == 0, done.stderr
    done = command("finetune", *words, timeout=1500)
    assert done.returncode == 0 and "goes on after step 2" in done.stdout, done.stderr
    assert set(json.loads((tmp_path / "runs/finetune/test_scores.json").read_text())) == {"best", "last"}
    assert list((tmp_path / "runs/finetune/pictures").glob("cells-*"))
    done = command("finetune.evaluate", "detector.pth", "--data", data, timeout=600)
    assert done.returncode == 0, done.stderr
    image = next((data / "test/images").iterdir())
    done = command("finetune.predict", "detector.pth", image, "--slide-mpp", 0.5, "--no-report", timeout=600)
    assert done.returncode == 0, done.stderr
    detector = Detector.load(tmp_path / "detector.pth")
    cells = detector.predict(image, mpp=0.5)
    with (tmp_path / f"cells/{image.stem}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(cells.labels_N)


# Recipes that a test has the time for: others need far more steps from random weights, or each of theirs takes
# many times as long.
LEARN = ("unet", "deeplabv3plus", "ucsrnet")


def _squares(side: int, cells: int) -> tuple[torch.Tensor, list[Targets]]:
    """Four images with red and blue spots, and where these are."""
    random = np.random.default_rng(0)
    images, targets = np.full((4, side, side, 3), 230, np.uint8), []
    y, x = np.mgrid[:side, :side] + 0.5
    for image_HWC in images:
        points: list[np.ndarray] = []
        while len(points) < cells:
            point = random.uniform(2, side - 2, 2)
            if all(np.linalg.norm(point - other) > 10 for other in points):
                points.append(point)
        labels_M = random.integers(0, 2, cells)
        for point, label in zip(points, labels_M, strict=True):
            image_HWC[(x - point[0]) ** 2 + (y - point[1]) ** 2 < 16] = (200, 60, 60) if label else (60, 60, 200)
        targets.append(Targets(torch.from_numpy(np.array(points)).float(), torch.from_numpy(labels_M)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), targets


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARN)
def test_four_tiles_are_learnt_by_heart(name: str, real_data: Path) -> None:
    """From ImageNet's weights of the trunk, if it has one."""
    recipe = dataclasses.replace(RECIPES[name], precision="float32")
    images, targets = _squares(64, 6)
    detector, held = rival(name), []
    for trunk in detector.trunks():
        report = load_into(trunk, read(real_data / "weights/resnet50_imagenet_v1.safetensors"))
        held = pretrained_batch_norms(trunk, report.used)
    objective = recipe.criterion.objective(detector.config, 5)
    training = TrainingState(detector, create_optimiser(detector, 1e-4), held, objective)
    scores = 0.0
    annotated = [Cells(*(each.numpy() for each in target), np.ones(len(target[1]))) for target in targets]
    for training.step in range(1, 201):
        update(recipe, training, Batch(images, targets), 1e-3)
        if training.step % 20 == 0:
            detector.eval()
            with torch.inference_mode():
                found = [each.inside(64, 64) for each in detector.detect(images)]
            scores = score_cells(found, annotated, ("blue", "red"), 6.0).macro_f1
            if scores > 0.9:
                break
    assert scores > 0.9


def test_a_density_has_two_decoders(data: Path, tmp_path: Path) -> None:
    save_detector(tmp_path / "gl.pth", rival("gl", classes=2), {"classes": ["negative", "positive"], "mpp": 0.5})
    loaded = LoadedDetector.load(tmp_path / "gl.pth")
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        counted = loaded.network.detect(image)[0]
        moved = decoded_by(loaded, "otm").network.detect(image)[0]
    assert len(moved.scores_N) >= len(counted.scores_N)
    assert (moved.scores_N == 1).all()
    with pytest.raises(UserError, match="vgg has no decoder 'discs'; choose from: counted, otm"):
        decoded_by(loaded, "discs")
    asked = EvaluateConfig(detector=tmp_path / "gl.pth", source=DataOptions(data=data), decoder="fidt")
    with pytest.raises(UserError, match="vgg has no decoder 'fidt'"):
        evaluate(dataclasses.replace(asked, out=tmp_path / "evaluation"))


@pytest.mark.parametrize("name", ["ucsrnet"])
def test_the_harvest_counts_with_a_rival(name: str, tmp_path: Path) -> None:
    save_detector(tmp_path / "detector.pth", rival(name), {"classes": ["a", "b"], "mpp": 0.5})
    counter = choose_counter(f"detector:{tmp_path / 'detector.pth'}")
    image_HW3 = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    network, _ = load_detector(tmp_path / "detector.pth")
    with torch.inference_mode(), autocast(torch.device("cpu"), training=True):
        expected = network.detect(torch.from_numpy(image_HW3).permute(2, 0, 1)[None])[0].inside(64, 96)
    np.testing.assert_allclose(counter.find(image_HW3, 0.5), expected.points_N2)


@pytest.mark.slow
def test_tiles_of_a_slide_are_one_piece_for_a_unet() -> None:
    """The margin of a window is wider than what a U-Net sees, and its maps begin where those of the whole do."""
    detector = rival("unet")
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (24, 56, 3), dtype=np.uint8)).resize((448, 192))
    image_BCHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    for module in detector.modules():  # a network from chance is made to find a cell here and there
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        (logits_BCHW,) = detector.train()(image_BCHW)
        last, scale_C = detector.network.last, 3 / logits_BCHW.std((0, 2, 3))
        last.weight.mul_(scale_C[:, None, None, None])
        last.bias.sub_(logits_BCHW.mean((0, 2, 3))).mul_(scale_C)
    detector.eval()
    loaded = LoadedDetector(Path("unet.pth"), detector, ("a", "b"), 0.5, torch.device("cpu"))
    source = Picture(image, 0.5)
    whole = cells_of(loaded, source, tiling_of(448, 192, detector.config))
    tiled = cells_of(loaded, source, tiling_of(448, 192, detector.config, None, 384, 128))
    found = agreement(whole, tiled)
    assert len(whole) > 20 and found.agree > 0.99 and found.doubled == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("unet", "--no-multi-scale"), "--no-multi-scale"),
        (("fidt", "--arch", "resnet50"), "--arch resnet50"),
        (("unet", "--init", "imagenet"), "--init imagenet"),
        (("ucsrnet", "--views", 2), "--views 2"),
        (("deeplabv3plus", "--batch-size", 4, "--accumulate", 4), "--batch-size 4"),
        (("cltr", "--queries", 3), "--queries"),
    ],
)
def test_wrong_options_end_in_one_sentence(
    words: tuple, named: str, data: Path, in_process: InProcess, tmp_path: Path
) -> None:
    code, _, said = in_process(main, *words, "--data", data, "--augment.crop", 64, "--run-dir", tmp_path / "run")
    assert code == 2 and named in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_detector_of_another_network_is_no_start(tmp_path: Path) -> None:
    save_detector(tmp_path / "a.pth", rival("ucsrnet"), {"classes": ["a", "b"], "mpp": 0.5})
    with pytest.raises(UserError, match="is a detector of another network"):
        initial_detector(rival("gl").config, str(tmp_path / "a.pth"), None, ["a", "b"])


def test_training_goes_on_from_a_rival_s_file_with_other_classes(tmp_path: Path) -> None:
    before = rival("ucsrnet")
    save_detector(tmp_path / "a.pth", before, {"classes": ["a", "b"], "mpp": 0.5})
    same = initial_detector(before.config, str(tmp_path / "a.pth"), None, ["a", "b"]).detector
    other = initial_detector(before.config, str(tmp_path / "a.pth"), None, ["a", "c"]).detector
    last = "network.last.1.weight"
    assert torch.equal(same.state_dict()[last], before.state_dict()[last])
    assert not torch.equal(other.state_dict()[last], before.state_dict()[last])
    front = "network.back.0.0.weight"
    assert torch.equal(other.state_dict()[front], before.state_dict()[front])


def test_more_cells_than_queries_are_refused() -> None:
    random = np.random.default_rng(0)
    tile = Tile(Path("full.png"), "slide", (256, 256), random.uniform(0, 256, (400, 2)), np.zeros(400, int))
    data = AnnotatedData(Path("data"), 0.5, ("cell",), {"train": [tile]})
    network = dataclasses.replace(RECIPES["cltr"].network, queries=100)
    with pytest.raises(UserError, match=r"full.png has \d+ cells in 160x160 px of it, more than 100 queries"):
        network.config(data, AugmentConfig(crop=128))
    assert RECIPES["cltr"].network.config(data, AugmentConfig(crop=128)).queries == 1000
