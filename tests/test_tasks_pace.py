"""A run says how fast it goes and how long that will take, between the lines of its log too, and learns the same."""

from __future__ import annotations

import re
import time

import pytest
from mambalab.tasks import train as trainer
from mambalab.tasks.pace import Pace
from mambalab.tasks.recipes import recipe
from mambalab.tasks.step import Trainee
from train_kills import TINY, outcome, run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


@pytest.fixture
def slow(clock, monkeypatch):
    """Steps of a second each, of that clock."""
    advance = Trainee.advance

    def slowly(*given):
        clock.now += 1
        advance(*given)

    monkeypatch.setattr(Trainee, "advance", slowly)


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


@pytest.mark.parametrize(("seconds", "step"), [(0.0, 4), (3.9, 4), (4.0, 4), (7.9, 4), (8.0, 8), (11.0, 8)])
def test_a_run_stops_at_the_last_line_that_comes_before_the_time_is_up(slow, tmp_path, seconds, step):
    result = run(tmp_path / "run", seconds=seconds)
    assert (result.step, result.done) == (step, False)
    assert (tmp_path / "run" / f"checkpoint-{step:08d}.safetensors").is_file()


def test_it_says_that_the_next_line_would_come_too_late_and_loses_no_bit(slow, whole, tmp_path):
    said: list[str] = []
    run(tmp_path / "run", seconds=11.0, say=said.append)
    assert said[-1] == "stopped after step 8 of 240: the next line of the log would take 4 s, and 3 s are left"
    assert run(tmp_path / "run").done
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_longer_stage_and_a_measurement_are_foreseen(slow, clock, tmp_path, monkeypatch):
    """At length 6 a step is taken to last as long as 1.5 of length 4."""
    assert run(tmp_path / "short", seconds=60 + 5.9).step == 60
    assert run(tmp_path / "long", seconds=60 + 6.0).step == 64
    monkeypatch.setattr(trainer, "measure", _slowly(clock, trainer.measure))
    assert run(tmp_path / "measured", seconds=143.0).step == 76


def _slowly(clock, measure):
    def measured(*given, **named):
        clock.now += 50
        return measure(*given, **named)

    return measured


def test_a_first_line_that_comes_too_late_is_said_once_and_early_and_what_helps(slow, tmp_path):
    said: list[str] = []
    found = run(tmp_path / "run", seconds=2.0, say=said.append)
    told = "a run stops only at a line of its log, and the 4 steps to the first take 0:00:04; "
    told += "sooner with --set log_every=1"
    assert [line for line in said if "log_every" in line] == [told]
    assert said.index(told) < said.index("stopped after step 4 of 240: the time is up")
    assert found.late == f"{told} in a new folder"
    assert run(tmp_path / "other", seconds=4.0).late is None
