"""Processes that serve this one through a pipe: they end with it, and leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch


class Spawned:
    """A process that runs `serve(pipe, *arguments)` with so many of torch's threads; `pipe` is this end of it.

    It is spawned, since a forked one could use neither CUDA nor the threads of the CPU backend.
    """

    def __init__(self, serve: Callable[..., None], threads: int, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_begin, args=(serve, threads, far, *arguments), daemon=True)
        with _interrupts_held():
            self.process.start()
        # Now a process that ends closes the last of its end, and that is heard here.
        far.close()

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _begin(serve: Callable[..., None], threads: int, *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    serve(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # Nothing is lost: what a run has written is whole at any moment.
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A scope in which Ctrl-C waits for its end, and never comes to a process that is started in it.

    Whoever sends it reaches all of them, and one that is still importing would answer with a traceback.
    """
    # Started on its own at first, it would let them through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
