"""`python -m ssl_pretrain.plan`: estimate time, memory, disk space and bandwidth of a run before submitting it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from shared.cli import Range, parse_beside, run, validate
from shared.errors import UserError
from shared.reporting.tables import table
from shared.training.gpu_usage import MEMORIES, PEAKS
from shared.training.network_size import count_parameters
from ssl_pretrain.data.shard_loader import MOST_WORKERS
from ssl_pretrain.data.shard_set import ShardSet, open_shards
from ssl_pretrain.recipe import PretrainingRecipe, check
from ssl_pretrain.recipes import RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan, require_images_at_once
from ssl_pretrain.run.flops import flops_per_image
from ssl_pretrain.run.initial_weights import check_init, describe_init
from ssl_pretrain.run.look_schedule import MINUTES
from ssl_pretrain.run.memory import checkpoint_bytes, estimate_memory

# Share of a GPU's peak that training reaches, for ViTs and ResNets (channels last, bfloat16): estimates for A100
# from published speeds of MAE, DINO and supervised ResNet-50.
REACHED = {"vit": 0.36, "resnet": 0.20}
# Bytes of a patch of 512 px as it is stored, where no shards are given: the mean over harvested tissue.
PATCH_BYTES = 60_000
KEPT_CHECKPOINTS = 2
DESCRIPTION = """Estimate a pre-training run: batch, steps, hours, memory, disk space, number of shards.

Takes the options of `python -m ssl_pretrain`, too. Times are estimates unless the speed is given, and
leave out what GPUs wait for each other: little on one node, most of a step that is shorter than some 30 ms."""


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Nodes and GPUs that a run is planned for."""

    help_groups: ClassVar = {"nodes": "cluster"}

    nodes: Annotated[tuple[int, ...], Range(1)] = (1,)
    """Nodes; several numbers make a table."""
    gpus: Annotated[int, Range(1)] = 8
    """GPUs of a node."""
    gpu: str = "A100"
    """Kind of GPU that the speed is estimated for."""
    cpus: Annotated[int, Range(1)] = 12
    """CPU cores of a GPU, of which all but one load patches."""
    images_per_second: Annotated[float | None, Range(1e-3)] = None
    """Measured speed of one GPU; default: estimated from the operations per image."""


@dataclass(frozen=True)
class CostEstimate:
    """Time and GPU-hours of a recipe, if GPUs do not slow each other down."""

    plan: BatchPlan
    speed: float
    """Images a second of one GPU."""

    @property
    def hours(self) -> float:
        """Hours from the first step to the last."""
        return self.plan.samples(self.plan.last_step) / (self.speed * self.plan.ranks) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.plan.ranks

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimiser step."""
        return self.plan.recipe.batch_size / (self.speed * self.plan.ranks)


@dataclass(frozen=True)
class Sizes:
    """Bytes that a run writes."""

    checkpoint: int
    weights: int


def main() -> int:
    """Print the estimate."""
    recipe, asked = parse_beside(RECIPES, "mae_vitb", "python -m ssl_pretrain.plan", DESCRIPTION, ClusterSpec())
    check(recipe)
    check_init(recipe)
    check_asked(asked)
    ranks = [nodes * asked.gpus for nodes in asked.nodes]
    speed, how = speed_of(recipe, asked)
    if len(ranks) == 1:
        require_images_at_once(recipe, ranks[0])
        bill = CostEstimate(BatchPlan.of(recipe, ranks[0]), speed)
    print(f"recipe  {recipe.name}: {recipe.method.name} with {recipe.method.arch}")
    if init := describe_init(recipe):
        print(f"init    {init}")
    print(f"speed   {speed:,.0f} images/s a GPU ({how})")
    if len(ranks) > 1:
        print(f"\n{table_of(recipe, ranks, speed)}")
    else:
        print(describe(bill, sizes_of(recipe)))
        micro_batch = bill.plan.micro_batch
        print(estimate_memory(recipe, micro_batch).describe(micro_batch, MEMORIES[asked.gpu]))
        print(describe_reading(bill, asked))
    return 0


def check_asked(asked: ClusterSpec) -> None:
    """Check ranges.

    Raises:
        UserError: names the option and what it takes.
    """
    validate(asked)
    if asked.gpu not in PEAKS:
        raise UserError(
            f"the speed of --gpu {asked.gpu} is not known; measure it for --images-per-second, or give "
            f"one of {', '.join(PEAKS)}"
        )


def speed_of(recipe: PretrainingRecipe, asked: ClusterSpec) -> tuple[float, str]:
    """Images a second of one GPU, and where the number comes from."""
    if asked.images_per_second is not None:
        return asked.images_per_second, "as given"
    flops = flops_per_image(recipe)
    reached = REACHED["resnet" if "resnet" in recipe.method.arch else "vit"]
    peak = 1e12 * PEAKS[asked.gpu]
    how = (
        f"estimated: {flops / 1e9:.1f} GFLOP an image, {reached:.0%} of an {asked.gpu}'s {peak / 1e12:.0f} TFLOP/s"
    )
    return reached * peak / flops, how


def sizes_of(recipe: PretrainingRecipe) -> Sizes:
    """Sizes of a checkpoint and of the exported weights."""
    method = recipe.method.build()
    return Sizes(checkpoint_bytes(recipe, method), 4 * count_parameters(method.backbone()))


def describe(bill: CostEstimate, sizes: Sizes) -> str:
    """Batch, length, time and disk."""
    plan = bill.plan
    every = plan.recipe.checkpoint_every
    minutes = MINUTES if every is None else every * bill.step_seconds / 60
    hours = f"{bill.hours:.3g}" if bill.hours < 100 else f"{bill.hours:,.1f}"
    return (
        f"{plan}\n"
        f"time    {hours} hours on {plan.ranks} GPU(s) = {bill.gpu_hours:,.0f} GPU-hours; "
        f"{bill.step_seconds:.3g} s a step\n"
        f"disk    {sizes.checkpoint / 1e9:.2f} GB a checkpoint, every {minutes:.3g} min, "
        f"{KEPT_CHECKPOINTS} are kept; {sizes.weights / 1e9:.2f} GB of weights in {plan.recipe.out}"
    )


def describe_reading(bill: CostEstimate, asked: ClusterSpec) -> str:
    """Describe the bandwidth the shards must deliver, and whether they suffice for all readers."""
    recipe, ranks = bill.plan.recipe, bill.plan.ranks
    workers = min(asked.cpus - 1, MOST_WORKERS) if recipe.loader.workers is None else recipe.loader.workers
    rate = bill.speed * ranks
    if not recipe.shards.is_dir():
        if recipe.shards != RECIPES[recipe.name].shards:
            raise UserError(f"there is no folder --shards {recipe.shards}; check the path")
        text = f"{rate * PATCH_BYTES / 1e6:,.0f} MB/s to read, at {PATCH_BYTES / 1000:.0f} kB a patch of 512 px"
        return f"shards  {text}; give --shards DIR to check those there"
    shard_set = open_shards(recipe.shards)
    bytes_each = sum(shard_set.path(n).stat().st_size for n in range(len(shard_set.shards))) / shard_set.samples
    return (
        f"shards  {recipe.shards}: {len(shard_set.shards)} with {shard_set.samples:,} patches of "
        f"{bytes_each / 1000:.0f} kB; {rate * bytes_each / 1e6:,.1f} MB/s to read\n"
        f"epochs  {recipe.samples_seen / shard_set.samples:,.1f} over these patches, "
        f"{shard_set.samples / rate / 60:.3g} min each\n"
        f"readers {ranks} rank(s) x {workers} workers: {_enough(bill.plan, shard_set, workers)}"
    )


def _enough(plan: BatchPlan, shard_set: ShardSet, workers: int) -> str:
    """Compare numbers of shards and patches with the number of readers."""
    samples, shards = shard_set.samples, len(shard_set.shards)
    readers = plan.ranks * max(workers, 1)
    batches = samples // plan.images_at_once
    if samples < plan.recipe.batch_size:
        return f"too few patches, a batch has {plan.recipe.batch_size:,}; harvest more slides"
    if batches < workers:
        return f"too few patches: {batches} batches an epoch for {workers} workers; lower --loader.workers"
    if shards < readers:
        return f"enough; {readers} read {shards} shards, so that some share one"
    return f"enough, a shard for each of {readers}"


def table_of(recipe: PretrainingRecipe, ranks: Sequence[int], speed: float) -> str:
    """Make a table with a row for each number of GPUs; below, those that are refused."""
    rows, remarks = [], []
    for count in ranks:
        try:
            require_images_at_once(recipe, count)
            bill = CostEstimate(BatchPlan.of(recipe, count), speed)
        except UserError as error:
            remarks.append(f"{count} GPUs: {error}")
            continue
        hours = (f"{bill.step_seconds:.3g}", f"{bill.hours:.3g}", f"{bill.gpu_hours:,.0f}")
        rows.append((count, bill.plan.micro_batch, bill.plan.accumulation, *hours))
    header = ("GPUs", "images a pass", "passes a step", "s a step", "hours", "GPU-hours")
    return "\n".join([table(header, rows), *remarks])


if __name__ == "__main__":
    run(main)
