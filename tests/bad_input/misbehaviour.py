"""A judge that dies, hangs or raises when told to: the campaign has to see it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .engine import RIGHT, Verdict


def misbehave(case: str, folder: Path) -> Verdict:
    if case == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "hang":
        time.sleep(60)
    if case == "raise":
        raise KeyError(case)
    return Verdict(RIGHT, "")
