"""How fast a run goes in this process, and how long that makes all that is left of it."""

from __future__ import annotations

import time

from .recipes import Recipe


class Pace:
    """A run's speed, from the interval of its log at work or else from the one before."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        # Seconds that a step takes for each place of its rows: so the speed at another length is foretold.
        self._per_place = 0.0

    def begin(self, step: int) -> None:
        """Interval by interval: here another begins, after so many steps."""
        self._step, self._length = step, self._recipe.stage(step)[0].length
        self._started, self._first, self._counted = time.perf_counter(), 0.0, 0

    def count(self, done: int) -> None:
        """So many steps of the interval are done now."""
        now = time.perf_counter()
        if self._counted == 0:
            self._first, self._counted = now, done
            self._saw(done, now - self._started)
        elif done > self._counted:
            # The first of a process compile what they need.
            self._saw(done - self._counted, now - self._first)

    def _saw(self, steps: int, seconds: float) -> None:
        self._per_place = seconds / (steps * self._length)

    def step_seconds(self) -> float:
        """What a step of this interval takes."""
        return self._per_place * self._length

    def left(self, step: int) -> float:
        """Seconds that all takes that is to be trained after so many steps."""
        return sum(steps * length for steps, length in self._recipe.stages_after(step)) * self._per_place
