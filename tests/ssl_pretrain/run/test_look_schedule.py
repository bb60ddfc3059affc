"""Checkpoints and measurements by the clock, which costs a published run less than 1 %, or after so many steps."""

import pytest

from shared.cli import UserError
from shared.training.distributed import World
from ssl_pretrain.recipe import check
from ssl_pretrain.recipes import MAE_VITB
from ssl_pretrain.run import look_schedule
from ssl_pretrain.run.look_schedule import LookSchedule
from tests.ssl_pretrain.stub import changed


def looks(world: World, monkeypatch: pytest.MonkeyPatch, **fields: int) -> tuple[list[int], list[int]]:
    """Return the steps, of a minute each, after which is saved and measured; clocks are compared after each."""
    now = [0.0]
    monkeypatch.setattr(look_schedule.time, "monotonic", lambda: now[0])
    schedule = LookSchedule(changed(MAE_VITB, **fields), world)
    saved, measured = [], []
    for step in range(1, 41):
        now[0] += 60
        schedule.poll()
        saved += [step] * schedule.saves(step)
        measured += [step] * schedule.measures(step)
        schedule.restart_clock()
    return saved, measured


def test_unless_told_every_15_minutes(world: World, monkeypatch: pytest.MonkeyPatch):
    assert looks(world, monkeypatch) == ([15, 30], [15, 30])


def test_what_is_given_is_counted_in_steps(world: World, monkeypatch: pytest.MonkeyPatch):
    assert looks(world, monkeypatch, checkpoint_every=9, monitor_every=20) == ([9, 18, 27, 36], [20, 40])
    assert looks(world, monkeypatch, keep_every=20, monitor_every=0) == ([15, 20, 30, 40], [])


def test_what_stays_for_good_is_a_multiple_of_what_is_saved():
    check(changed(MAE_VITB, checkpoint_every=500, keep_every=1500))
    with pytest.raises(UserError, match="--keep-every 1500"):
        check(changed(MAE_VITB, checkpoint_every=1000, keep_every=1500))
