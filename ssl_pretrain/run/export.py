"""Export of the backbone for the next stage, with its model card."""

from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.training.run_folder import Run, git_commit, versions
from shared.weights import weights_file
from ssl_pretrain.data.shard_set import ShardSet
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.initial_weights import origin_of
from ssl_pretrain.run.model_card import write_card
from ssl_pretrain.run.setup import normalisation
from ssl_pretrain.run.state import PretrainingState

# Names of images in the metadata of the weights.
MOST_NAMED = 20


def export(state: PretrainingState, plan: BatchPlan, run: Run, shard_set: ShardSet) -> Path:
    """Write the backbone into the run folder and copy it to the recipe's `out`; returns that path."""
    path = _in_run(run, plan)
    metadata = _metadata(state, plan, run, shard_set)
    weights_file.write(path, state.method.export(), metadata)
    _publish(path, plan.recipe.out, metadata)
    return plan.recipe.out


def is_finished(plan: BatchPlan, run: Run) -> bool:
    """Return True if the weights of the last step are exported; restores a missing copy."""
    path = _in_run(run, plan)
    try:
        metadata = weights_file.read(path).metadata
    except UserError:
        return False
    finished: bool = metadata.get("steps", 0) >= plan.last_step
    if finished and run.writes and not plan.recipe.out.exists():
        _publish(path, plan.recipe.out, metadata)
    return finished


def _publish(path: Path, out: Path, metadata: dict[str, Any]) -> None:
    """Copy the weights to `--out` and write both model cards."""
    weights_file.publish(path, out)
    for place in (path, out):
        write_card(place, metadata)


def _in_run(run: Run, plan: BatchPlan) -> Path:
    return run.folder / plan.recipe.out.name


def _metadata(state: PretrainingState, plan: BatchPlan, run: Run, shard_set: ShardSet) -> dict[str, Any]:
    recipe = plan.recipe
    mean, std = normalisation(recipe, shard_set)
    return {
        "kind": "backbone",
        "arch": recipe.method.arch,
        "image_size": recipe.method.image_size,
        "method": recipe.method.name,
        "recipe": recipe.name,
        "mean": list(mean),
        "std": list(std),
        **({"init": {**origin_of(recipe.init)._asdict(), "fresh": recipe.method.fresh}} if recipe.init else {}),
        "samples_seen": plan.samples(state.step),
        "steps": state.step,
        "batch_size": recipe.batch_size,
        "images_at_once": recipe.batch_size if recipe.method.is_mean_over_images else plan.images_at_once,
        "largest_crop": recipe.method.crops[0].scale[1],
        "interpolation": recipe.method.crops[0].interpolation,
        "patches": shard_set.samples,
        "undecodable": len(state.undecodable),
        "undecodable_images": sorted(state.undecodable)[:MOST_NAMED],
        "slides": shard_set.slides,
        "biomarkers": dict(shard_set.biomarkers),
        "harvest": shard_set.settings,
        "run_id": run.id,
        "changes": run.changes,
        "git_commit": git_commit(),
        "versions": versions(),
    }
