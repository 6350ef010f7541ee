"""Lines of progress come now and then, however often there is something to say."""

from __future__ import annotations

import time

from mambalab.tasks.progress import now_and_then


def test_a_line_is_handed_on_once_in_so_many_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[float] = []
    say = now_and_then(lambda line: said.append(float(line)), 10.0)
    for now in (100.0, 109.9, 110.0, 115.0, 119.9, 131.0, 140.0, 141.0):
        say(f"{now}")
    assert said == [110.0, 131.0, 141.0]
