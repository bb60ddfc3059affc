"""SwAV where few images are seen at once: which recipe it is, what of the words typed stays, and what is said."""

import json
import sys
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.training import checkpoint
from shared.training.distributed import World
from shared.weights import weights_file
from ssl_pretrain import plan as bill
from ssl_pretrain import recipe_fallback
from ssl_pretrain.__main__ import main
from ssl_pretrain.launch import LAUNCH
from ssl_pretrain.recipe import Recipe
from ssl_pretrain.recipe_fallback import RecipeChoice, parse_asked
from ssl_pretrain.recipes import RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.stub import changed

IMAGENET = 1_281_167
TINY = [
    *("swav_resnet50", "--method.arch", tiny.RESNET, "--method.image-size", "64", "--method.small-size", "32"),
    *("--method.small-crops", "2", "--method.hidden-dim", "16", "--method.dim", "8", "--method.prototypes", "10"),
    *("--batch-size", "8", "--micro-batch", "4", "--samples-seen", "160", "--optimiser.warmup-samples", "16"),
    *("--method.queue-after", "8", "--loader.workers", "0", "--monitor-every", "0", "--checkpoint-every", "1"),
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def typed(*words: object) -> RecipeChoice:
    return parse_asked("ssl_pretrain", "", LAUNCH, [str(word) for word in words])[0]


def without_places(recipe: Recipe) -> dict:
    return {name: value for name, value in vars(recipe).items() if name not in ("run_dir", "out", "in_place_of")}


@pytest.mark.parametrize(
    ("words", "ranks", "is_small"),
    [
        ((), 64, False),  # 64 images on each
        ((), 16, False),  # 256
        ((), 8, True),  # 2 x 256: accumulation shares nothing
        (("--micro-batch", 512), 8, False),
        (("--micro-batch", 32), 64, True),
        ((), 1, True),
        (("--batch-size", 2048), 64, True),
        (("--batch-size", 8192), 32, False),
    ],
)
def test_images_at_once_decide(words: tuple, ranks: int, is_small: bool):
    check_choice("swav_resnet50", "swav_resnet50_256" if is_small else "swav_resnet50", words, ranks)


@pytest.mark.parametrize(("ranks", "name"), [(64, "swav_resnet50_ihc"), (8, "swav_resnet50_256_ihc")])
def test_so_they_do_for_ihc(ranks: int, name: str):
    check_choice("swav_resnet50_ihc", name, (), ranks)


def check_choice(asked: str, name: str, words: tuple, ranks: int) -> None:
    """`asked` with these words becomes `name` with them, in the places of `asked`."""
    recipe = typed(asked, *words).on(ranks)
    told = {word[2:].replace("-", "_"): value for word, value in zip(words[::2], words[1::2], strict=True)}
    assert without_places(recipe) == {**without_places(RECIPES[name]), **told}
    assert (recipe.run_dir, recipe.out) == (Path(f"runs/{asked}"), Path(f"{asked}.pth"))
    assert bool(recipe.in_place_of) is (name != asked)


def test_its_numbers_are_those_of_the_official_script():
    """swav_200ep_bs256_pretrain.sh."""
    recipe = typed("swav_resnet50").on(1)
    plan, method = BatchPlan.of(recipe, 1), recipe.method
    assert (recipe.batch_size, method.queue_length, method.queue_after) == (256, 3840, 15 * IMAGENET)
    assert (method.epsilon, method.sinkhorn_iterations, method.frozen_samples) == (0.05, 3, IMAGENET)
    assert [plan.learning_rate(step) for step in (0, plan.steps)] == pytest.approx([0.6, 0.0006])


GIVEN = [
    ("method.queue-length", 0),  # as in the recipe for large batches: given is given
    ("method.queue-length", 1920),
    ("method.queue-after", 7),
    ("method.epsilon", 0.04),
    ("method.frozen-samples", 0),
    ("optimiser.base-lr", 0.3),
    ("optimiser.warmup-samples", 10 * IMAGENET),
    ("optimiser.final-lr", 0.0048),
    ("batch-size", 2048),
    ("seed", 3),
]


@pytest.mark.parametrize(("option", "value"), GIVEN)
def test_what_was_typed_stays(option: str, value: float):
    recipe = typed("swav_resnet50", f"--{option}", value).on(1)
    part, _, field = f".{option}".replace("-", "_").rpartition(".")
    owner = getattr(recipe, part[1:]) if part else recipe
    assert getattr(owner, field) == value
    assert f"{field}=" not in recipe.in_place_of  # it says what changes
    expected = RECIPES["swav_resnet50_256"]
    fields = {field: value}
    expected = changed(
        expected, **({part[1:]: changed(getattr(expected, part[1:]), **fields)} if part else fields)
    )
    assert without_places(recipe) == without_places(expected)


def test_a_large_batch_in_small_parts_gets_the_queue_and_keeps_its_rates():
    recipe = typed("swav_resnet50", "--batch-size", 4096, "--optimiser.momentum", 0.8).on(8)
    assert recipe.method == RECIPES["swav_resnet50_256"].method
    assert recipe.optimiser == changed(RECIPES["swav_resnet50"].optimiser, momentum=0.8)
    assert (BatchPlan.of(recipe, 8).images_at_once, recipe.batch_size) == (2048, 4096)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"swav_resnet50", "swav_resnet50_ihc"}))
def test_other_recipes_are_what_was_typed(name: str):
    assert typed(name).on(1) == RECIPES[name]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--micro-batch", 0), "--micro-batch 0 is out of range"),
        (("--batch-size", 0), "--batch-size 0 is out of range"),
        (("--batch-size", 9), "a batch of 9 cannot be shared evenly by 2 ranks"),
    ],
)
def test_wrong_input_is_one_sentence(words: tuple, sentence: str):
    with pytest.raises(UserError, match=sentence):
        typed("swav_resnet50", *words).on_these(World(0, 0, 2, torch.device("cpu")))


def test_a_run_says_so_in_the_beginning_in_its_settings_and_on_its_card(shards: Path, pretrain, tmp_path: Path):
    code, out, err = pretrain(*TINY, "--max-steps", 2)
    assert code == 0, err
    said = (
        "swav_resnet50, which is for 4,096 images at once: method.queue_length=3840, optimiser.base_lr=0.6, "
        "optimiser.warmup_lr=0.0, optimiser.final_lr=0.0006"
    )
    assert f"note    this is swav_resnet50_256, in place of {said}\n" in out
    run = tmp_path / "runs" / "swav_resnet50"
    config = json.loads((run / "config.json").read_text())
    assert (config["name"], config["in_place_of"]) == ("swav_resnet50_256", said)
    assert (config["method"]["queue_length"], config["method"]["queue_after"]) == (3840, 8)
    assert checkpoint.resume(run, "swav_resnet50_256")["networks"]["queues.1.rows_ND"].shape == (3840, 8)
    assert weights_file.read(tmp_path / "swav_resnet50.pth").metadata["in_place_of"] == said
    card = (tmp_path / "swav_resnet50.md").read_text()
    assert f"with the recipe `swav_resnet50_256`, in place of {said}.\n" in card


@pytest.mark.parametrize(
    ("first", "then", "name"), [(4, 8, "swav_resnet50_256"), (8, 4, "swav_resnet50")], ids=["small", "large"]
)
def test_a_run_goes_on_as_what_it_began(
    first: int, then: int, name: str, shards: Path, pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With so many more or fewer images at once that it would be the other recipe if it began there."""
    monkeypatch.setattr(recipe_fallback, "BATCH_WITHOUT_QUEUE", 8)
    assert pretrain(*TINY, "--micro-batch", first, "--max-steps", 1)[0] == 0
    config = tmp_path / "runs" / "swav_resnet50" / "config.json"
    before = json.loads(config.read_text())
    code, out, err = pretrain(*TINY, "--micro-batch", then, "--max-steps", 2)
    assert code == 0 and "state   goes on after step 1" in out, err
    after = json.loads(config.read_text())
    assert after["name"] == before["name"] == name
    assert after["method"] == before["method"] and after["optimiser"] == before["optimiser"]
    config.write_text("{")
    assert "config.json is damaged" in pretrain(*TINY)[2]


def test_gpus_of_the_job_that_is_submitted_decide(monkeypatch: pytest.MonkeyPatch):
    queued: list[str] = []
    monkeypatch.setattr(
        "ssl_pretrain.launch.train_in_slurm", lambda recipe, launch: queued.append(recipe.name) or 0
    )
    monkeypatch.setattr("ssl_pretrain.launch.check_slurm", lambda slurm: None)
    for nodes in (1, 8):
        monkeypatch.setattr(
            sys, "argv", ["ssl_pretrain", "swav_resnet50", "--launcher", "slurm", "--slurm.nodes", str(nodes)]
        )
        assert main() == 0
    assert queued == ["swav_resnet50_256", "swav_resnet50"]


@pytest.mark.parametrize("nodes", [0, -1])
def test_a_job_of_no_nodes_is_refused(nodes: int, monkeypatch: pytest.MonkeyPatch):
    words = ["swav_resnet50", "--launcher", "slurm", "--slurm.nodes", str(nodes)]
    monkeypatch.setattr(sys, "argv", ["ssl_pretrain", *words])
    with pytest.raises(UserError, match=f"--slurm.nodes {nodes} is out of range"):
        main()


def test_the_bill_is_that_of_what_would_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    words = ["plan", "swav_resnet50", "--images-per-second", "800", "--nodes"]
    monkeypatch.setattr(sys, "argv", [*words, "1", "8"])
    assert bill.main() == 0
    said = capsys.readouterr().out
    rows = [line.split()[:3] for line in said.splitlines()]
    assert ["8", "32", "1"] in rows and ["64", "64", "1"] in rows
    assert "8 GPUs: this is swav_resnet50_256, in place of swav_resnet50" in said and "64 GPUs: " not in said
    monkeypatch.setattr(sys, "argv", [*words, "1"])
    assert bill.main() == 0
    said = capsys.readouterr().out
    assert "recipe  swav_resnet50_256" in said and "batch   256 images = 8 rank(s) x 32 x 1 accumulated" in said
    assert "note    this is swav_resnet50_256, in place of swav_resnet50" in said
