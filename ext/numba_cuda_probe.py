"""Why the numba-cuda backend can't run here, found out without importing numba where that settles it."""

from functools import cache
from importlib.util import find_spec

import torch


@cache
def missing() -> str | None:
    """Why numba-cuda can't compile or run a kernel; None when it can."""
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU"
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed"
    try:
        from .numba_cuda_arrays import one_more_than

        answer = one_more_than(1, torch.device("cuda", torch.cuda.current_device()))
    except Exception as error:
        # A failed import, no NVRTC, or PTX that is newer than the driver.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"a trivial kernel fails: {type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None if answer == 2 else f"a trivial kernel gives {answer} for 1 + 1"
