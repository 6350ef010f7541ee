"""Lines of progress come now and then, however often there is something to say."""

from __future__ import annotations

import time

from mambalab.tasks.progress import Paced, now_and_then


def test_a_line_is_handed_on_once_in_so_many_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[float] = []
    say = now_and_then(lambda line: said.append(float(line)), 10.0)
    for now in (100.0, 109.9, 110.0, 115.0, 119.9, 131.0, 140.0, 141.0):
        say(f"{now}")
    assert said == [110.0, 131.0, 141.0]


def test_each_line_asks_for_a_silence_of_its_own_before_it(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[str] = []
    say = Paced(said.append, ago=8.0)
    asked = {"a": (101.9, 10.0), "b": (102.0, 10.0), "c": (103.0, 1.0), "d": (103.5, 1.0), "e": (103.6, 0.0)}
    for line, (moment, after) in asked.items():
        now = moment
        say(line, after)
    assert said == ["b", "c", "e"]
