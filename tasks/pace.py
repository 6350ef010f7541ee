"""How fast a run goes in this process: how long that makes what is left of it, and what fits into the time it has."""

from __future__ import annotations

import time

from .progress import clock
from .recipes import Recipe


class Pace:
    """A run's speed, from the interval of its log at work or else from the one before.

    seconds   what the process may take from now on; None: as long as it likes
    measuring seconds that the latest measurement of accuracy took
    """

    def __init__(self, recipe: Recipe, seconds: float | None = None) -> None:
        self._recipe, self._seconds, self._begun = recipe, seconds, time.perf_counter()
        self._intervals, self.measuring = 0, 0.0
        # Seconds that a step takes for each place of its rows: so the speed at another length is foretold.
        self._per_place = 0.0

    def begin(self, step: int) -> None:
        """Interval by interval: here another begins, after so many steps."""
        self._intervals, self._length = self._intervals + 1, self._recipe.stage(step)[0].length
        self._started, self._first, self._counted, self._done = time.perf_counter(), 0.0, 0, 0

    def count(self, done: int) -> None:
        """So many steps of the interval are done now."""
        now, self._done = time.perf_counter(), done
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

    def _time_left(self) -> float:
        return (self._seconds or 0.0) - (time.perf_counter() - self._begun)

    def out_of_time(self, step: int) -> str | None:
        """Why not to go on after so many steps, at a line of the log; None where the next comes before the time is up.

        So far as the steps and the measurement before this one tell.
        """
        if self._seconds is None:
            return None
        recipe, left = self._recipe, self._time_left()
        needed = recipe.log_every * recipe.stage(step)[0].length * self._per_place
        if recipe.is_measured(step + recipe.log_every):
            needed += self.measuring
        if left <= 0:
            return "the time is up"
        if needed <= left:
            return None
        return f"the next line of the log would take {needed:.3g} s, and {left:.3g} s are left"

    def first_line_late(self, is_kept: bool) -> str | None:
        """That the first line of the log does not come before the time is up, and what helps; None where it does.

        is_kept  whether anything of the run is in its folder, which then takes no other settings
        """
        every = self._recipe.log_every
        # Of one step nobody knows how much of it will not come again; who gives no time at all asks for just one line.
        if not self._seconds or self._intervals > 1 or self._done < min(2, every):
            return None
        step = self.step_seconds()
        if (every - self._done) * step <= self._time_left():
            return None
        told = f"a run stops only at a line of its log, and the {every} steps to the first take {clock(every * step)}"
        shorter = [n for n in range(1, every) if every % n == 0 and n * step <= self._seconds / 2]
        if every == 1:
            return told
        return f"{told}; sooner with --set log_every={max(shorter, default=1)}" + (
            " in a new folder" if is_kept else ""
        )
