"""Training loop of all self-supervised methods."""

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from shared.signals import StopSignal, leave_marker
from shared.training.distributed import (
    World,
    any_rank,
    end_at_checkpoint,
    exchange_gradients,
    is_stopped,
    replicated,
)
from shared.training.gpu_usage import explain_out_of_memory
from shared.training.precision import autocast, set_backends
from shared.training.rank_errors import together
from shared.training.run_folder import Run
from shared.training.seeds import seed_batch
from ssl_pretrain.data.shard_loader import ShardLoader
from ssl_pretrain.data.shard_set import ShardSet
from ssl_pretrain.data.views import Views
from ssl_pretrain.inspection.monitor import Monitor
from ssl_pretrain.optim.optimizers import set_rates
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.export import export, is_finished
from ssl_pretrain.run.look_schedule import LookSchedule
from ssl_pretrain.run.setup import begin, describe, normalisation, open_run, prepare, verify
from ssl_pretrain.run.state import PretrainingState
from ssl_pretrain.run.step_logger import StepLogger

# Gives the uint8 crops of a micro-batch.
Batches = Callable[[], list[Tensor]]


class StalledError(Exception):
    """A signal told to stop in a step whose batch did not come; the checkpoint before it is written."""


def train(recipe: PretrainingRecipe, world: World, stop: StopSignal) -> int:
    """Train, or resume training, to the recipe's end; returns the exit code of the process.

    0: the weights are exported. 85: stopped by a signal, at a checkpoint or before there was any.

    Raises:
        UserError: options, shards, run folder or batch size do not fit; the loss is not finite.
    """
    set_backends(recipe.deterministic)
    plan, shard_set = prepare(recipe, world)
    if not verify(recipe, shard_set, world, stop):
        return end_at_checkpoint("before its first step", stop, world)
    with contextlib.closing(open_run(recipe, shard_set, world)) as run:
        return _train(plan, shard_set, run, world, stop)


def _train(plan: BatchPlan, shard_set: ShardSet, run: Run, world: World, stop: StopSignal) -> int:
    say = print if world.is_main else _silence
    where = f"weights in {plan.recipe.out}, pictures in {run.folder}/pictures"
    with together(world):
        finished = world.is_main and is_finished(plan, run)
    if any_rank(finished, world.device):
        say(f"finished already, after {plan.last_step:,} steps: {where}")
        return 0

    with explain_out_of_memory("a lower --micro-batch, or with --checkpoint-activations"):
        state, standing = begin(plan, world)
        say(describe(plan, state, shard_set, world))
        say(f"state   {standing}", flush=True)
        run.rewind(state.step)
        views = _views(plan.recipe, shard_set).to(world.device)
        with together(world):
            crop, measures = plan.recipe.method.crops[0], plan.recipe.monitor_every != 0
            monitor = Monitor(run, shard_set, views, crop, measures)
        stopped = _loop(plan, state, monitor, world, stop)
    if stopped:
        return end_at_checkpoint(f"after step {state.step:,}", stop, world)
    with together(world):
        if world.is_main:
            export(state, plan, run, shard_set)
    say(f"finished after {state.step:,} steps: {where}, metrics in {run.folder}/metrics.jsonl")
    return 0


def _loop(plan: BatchPlan, state: PretrainingState, monitor: Monitor, world: World, stop: StopSignal) -> bool:
    """Take steps until the last one or a stop signal on any rank; returns True if it was stopped."""
    recipe, method, run = plan.recipe, state.method, monitor.run
    state.model = replicated(method, world, send_buffers=False)  # a queue is 32 MB
    arguments = (monitor.shard_set, recipe.method.crops, recipe.loader, state.layout, world, recipe.seed)
    loader = ShardLoader(*arguments, state.position, state.undecodable)
    schedule, stopping = LookSchedule(recipe, world), False
    with contextlib.suppress(StalledError), loader, StepLogger(run, plan, world, state.step) as meter:
        take = meter.timed(functools.partial(_take, loader, meter, state, world, stop))
        if state.step == 0:
            with together(world):
                monitor.draw(method, step=0)  # what the networks are going to see
                monitor.measure(method, step=0)
            meter.restart_clock()
        while state.step < plan.last_step and not stopping:
            loss = update(plan, state, monitor.views, take, world)
            state.step, state.position = state.step + 1, loader.position
            meter.step_done(loss, method.measures())

            is_end = state.step == plan.last_step
            if meter.is_due or is_end:
                meter.flush()
                schedule.poll()
                stopping = not is_end and is_stopped(stop, world)
            is_saved = schedule.saves(state.step) or is_end or stopping
            is_measured = schedule.measures(state.step) or is_end
            if is_saved or is_measured:
                meter.flush()
                loader.exchange_undecodable(world)
                state.undecodable = loader.undecodable
                with together(world):  # a full disk shows on the first rank only
                    if is_saved:
                        state.save(run, recipe.name, recipe.keep_every)
                        monitor.draw(method, state.step)
                    if is_measured:
                        monitor.measure(method, state.step)
                meter.restart_clock()
                schedule.restart_clock()
        return stopping
    return True


def _take(
    loader: ShardLoader, meter: StepLogger, state: PretrainingState, world: World, stop: StopSignal
) -> list[Tensor]:
    """Take the next batch; told to stop while there is none, the first rank writes a checkpoint.

    Other ranks may be in their step and wait for the gradients of this one, so none leaves it before its end.

    Raises:
        StalledError: a single process was told to stop.
    """
    if (crops := loader.take(stop)) is None:
        if world.size == 1:  # others could not exchange anything now
            meter.flush()
            loader.exchange_undecodable(world)
            state.undecodable = loader.undecodable
        if world.is_main:
            state.save(meter.run, meter.plan.recipe.name, meter.plan.recipe.keep_every)
            leave_marker(f"after step {state.step:,}")
        if world.size == 1:
            raise StalledError
        crops = loader.take()
    assert crops is not None
    return crops


def _views(recipe: PretrainingRecipe, shard_set: ShardSet) -> Views:
    """Make the augmentation, which runs on the device."""
    views = Views(recipe.views, recipe.method.crops, *normalisation(recipe, shard_set))
    if recipe.compile:
        views.compile()
    return views


def update(plan: BatchPlan, state: PretrainingState, views: Views, take: Batches, world: World) -> Tensor:
    """Make one step, in which nothing waits for the device; returns this rank's loss (scalar, on the device).

    Args:
        plan: Division of the batch among ranks and passes.
        state: Networks, optimiser and the steps done, which the caller counts.
        views: Augmentation of crops, on the device.
        take: Gives the crops of the next micro-batch.
        world: This process among the ranks.
    """
    step, method, optimiser = plan.at(state.step), state.method, state.optimiser
    optimiser.zero_grad()
    loss = _add_gradients(plan, state, views, take, world)
    method.before_update(step)
    plan.recipe.optimiser.clip_gradients(method)
    set_rates(optimiser, plan.learning_rate(state.step), plan.weight_decay(state.step))
    optimiser.step()
    method.after_step(step)
    return loss


def _add_gradients(plan: BatchPlan, state: PretrainingState, views: Views, take: Batches, world: World) -> Tensor:
    """Accumulate the gradients of a batch, one pass per micro-batch; returns this rank's loss (scalar)."""
    step, loss = plan.at(state.step), torch.zeros((), device=world.device)
    for part in range(plan.accumulation):
        crops = [crop.to(world.device, non_blocking=True) for crop in take()]
        seed_batch(plan.recipe.seed, step.number * plan.accumulation + part, world.rank)
        with exchange_gradients(state.model, only_if=part == plan.accumulation - 1):
            with autocast(world.device, plan.recipe.precision):
                part_loss = state.model(views(crops), step) / plan.accumulation
            part_loss.backward()
        loss += part_loss.detach()
    return loss


def _silence(*_words: object, **_options: object) -> None:
    """Print nothing, on all ranks but the first."""
