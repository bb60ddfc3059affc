"""`python -m tests.benchmarks.ssl_step [SHARDS]`: a training step of each recipe on a GPU, against eager ones.

Plain: the same networks and loss in bfloat16 as the official codes run them: eager, in torch's usual layout,
attention as single products, an optimiser that handles one tensor after another. Fused: the same with torch's
fused attention. Ours: as `ssl_pretrain` trains with --compile. Micro-batches are those of 8 GPUs. Synthetic
batches; with a folder of shards also fed from them. Run again, it goes on where it was interrupted.
"""

import dataclasses
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared.training.distributed import World
from shared.training.gpu_usage import memory_gb, peak_flops
from shared.training.precision import autocast, set_backends
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD
from ssl_pretrain.data.epoch_order import EpochPartition, Position
from ssl_pretrain.data.shard_loader import ShardLoader
from ssl_pretrain.data.shard_set import open_shards
from ssl_pretrain.data.views import Views
from ssl_pretrain.methods import Method, Step
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.recipes import RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.flops import flops_per_image
from tests.benchmarks.measuring import in_turn, measured_here, write

NAMES = ("mae_vitb", "moco_v2_resnet50", "swav_resnet50", "dino_resnet50", "dino_vitb")
RANKS = 8
STEPS = 10
OUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Measure each recipe, write the CSV after each; on a CPU one small batch, to see that it runs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    shards = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    set_backends(deterministic=False)
    rows: list[dict[str, object]] = [*measured_here(OUT)]
    for name in [name for name in NAMES if name not in {row["recipe"] for row in rows}]:
        batch = BatchPlan.of(RECIPES[name], RANKS).micro_batch if on_gpu else 2
        try:
            rows.append(measured(RECIPES[name], batch, STEPS if on_gpu else 1, shards, device))
        except torch.cuda.OutOfMemoryError:
            print(f"{name}: a batch of {batch} does not fit")
            torch.cuda.empty_cache()
        if on_gpu and rows:
            write(OUT, rows)


def measured(
    recipe: PretrainingRecipe, batch: int, steps: int, shards: Path | None, device: torch.device
) -> dict[str, object]:
    """Images/s of all three, in turn, and what ours makes of the GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    crops = synthetic(recipe, batch, device)
    ours = step_of(recipe, device, plainly=False)
    repeat(ours, crops, steps)  # compiles, and finds the fastest kernels
    memory = memory_gb(device)  # of ours alone
    plain = step_of(recipe, device, plainly=True)
    fused = plain if "resnet" in recipe.method.arch else step_of(recipe, device, plainly=True, fuses=True)
    steppers = {"plain": plain, "fused": fused, "ours": ours}
    for train in (plain, fused):
        repeat(train, crops, steps)
    works = {name: partial(repeat, train, crops, steps) for name, train in steppers.items()}
    seconds = in_turn(works, repeats=3)
    speed = {name: batch * steps / taken for name, taken in seconds.items()}
    peak = peak_flops(device)
    row: dict[str, object] = {
        "recipe": recipe.name,
        "batch": batch,
        "plain_images_per_second": round(speed["plain"], 1),
        "fused_images_per_second": round(speed["fused"], 1),
        "images_per_second": round(speed["ours"], 1),
        "ratio": round(speed["ours"] / speed["plain"], 2),
        "ratio_to_fused": round(speed["ours"] / speed["fused"], 2),
        "mfu_percent": round(100 * flops_per_image(recipe) * speed["ours"] / peak, 1) if peak else "",
        "memory_gb": round(memory, 1) if memory else "",
        "from_shards": "",
    }
    if shards:
        row["from_shards"] = round(fed_from(shards, recipe, batch, steps, ours, device), 1)
    return row


def step_of(
    recipe: PretrainingRecipe, device: torch.device, plainly: bool, fuses: bool = False
) -> Callable[[list[Tensor]], None]:
    """Return a function that trains on one batch of uint8 crops."""
    torch.manual_seed(0)
    method: Method = recipe.method.build().to(device)
    views = Views(recipe.views, recipe.method.crops, IMAGENET_MEAN, IMAGENET_STD).to(device)
    if plainly:
        method = method.to(memory_format=torch.contiguous_format)
        optimiser: torch.optim.Optimizer = torch.optim.SGD(method.parameters(), 1e-3, momentum=0.9, foreach=False)
    else:
        optimiser = recipe.optimiser.build(method)
        if device.type == "cuda":
            method.compile_trunks()
            views.compile()
    step = Step(number=0, samples=0, total=1)

    def train(crops: list[Tensor]) -> None:
        attention = sdpa_kernel(SDPBackend.MATH) if plainly and not fuses else nullcontext()
        with autocast(device), attention:
            loss = method(views(crops), step)
        loss.backward()
        method.before_update(step)
        optimiser.step()
        optimiser.zero_grad()
        method.after_step(step)

    return train


def synthetic(recipe: PretrainingRecipe, batch: int, device: torch.device) -> list[Tensor]:
    """Random uint8 crops as the loader gives them."""
    crops = [crop for crop in recipe.method.crops for _ in range(crop.count)]
    return [
        torch.randint(0, 256, (batch, 3, crop.size, crop.size), dtype=torch.uint8, device=device) for crop in crops
    ]


def repeat(train: Callable[[list[Tensor]], None], crops: list[Tensor], steps: int) -> None:
    """So many steps on the same crops."""
    for _ in range(steps):
        train(crops)


def fed_from(
    shards: Path,
    recipe: PretrainingRecipe,
    batch: int,
    steps: int,
    train: Callable[[list[Tensor]], None],
    device: torch.device,
) -> float:
    """Images/s with a loader in front."""
    config = dataclasses.replace(recipe.loader, buffer=256)
    layout = EpochPartition(batch, 1, max(config.resolved_workers(), 1), config.buffer)
    world = World(0, 0, 1, device)
    with ShardLoader(open_shards(shards), recipe.method.crops, config, layout, world, 0, Position()) as loader:

        def run() -> None:
            for _ in range(steps):
                train([crop.to(device, non_blocking=True) for crop in loader.take()])

        run()
        return batch * steps / in_turn({"fed": run}, repeats=2)["fed"]


if __name__ == "__main__":
    main()
