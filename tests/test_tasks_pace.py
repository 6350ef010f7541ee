"""A run says how fast it goes and how long that will take, between the lines of its log too, and learns the same."""

from __future__ import annotations

import re
import time

import pytest
from mambalab.tasks import train as trainer
from mambalab.tasks.pace import Pace
from mambalab.tasks.recipes import recipe
from train_kills import TINY, outcome, run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_slow_steps_are_said_before_their_line_of_the_log_and_change_no_bit(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "FIRST_BEAT", 0.0)
    monkeypatch.setattr(trainer, "BEAT", 0.0)
    said: list[str] = []
    assert run(tmp_path / "run", say=said.append).done
    between = [line for line in said if "loss" not in line]
    assert len(between) == TINY.steps
    assert re.fullmatch(r"step 1/240  length 4  [\d.e+]+ steps/s  \d+:\d\d:\d\d left", between[0])
    assert "step 240/240  length 6  " in between[-1]
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_measurement_says_at_which_lengths_were_learnt_and_measured(tmp_path):
    said: list[str] = []
    run(tmp_path / "run", say=said.append)
    (first,) = [line for line in said if line.startswith("step 40/")]
    assert "  length 4  loss " in first
    assert "| of 16 sequences of length 6: tokens " in first


def test_what_is_left_is_foretold_from_the_steps_so_far_without_the_first(clock):
    quick = recipe("induction-heads-quick")
    pace = Pace(quick)
    pace.begin(0)
    clock.now += 30
    pace.count(1)
    assert pace.step_seconds() == 30
    clock.now += 8
    pace.count(5)
    assert pace.step_seconds() == 2
    assert pace.left(1000) == pytest.approx(2 * (500 * 64 + 1000 * 256) / 16)


def test_an_interval_that_is_one_graph_is_counted_as_a_whole(clock):
    pace = Pace(recipe("induction-heads-quick"))
    pace.begin(0)
    clock.now += 10
    pace.count(50)
    assert pace.step_seconds() == pytest.approx(0.2)
