"""The scan on the CPU, shapes of every kind for it, and a process of its own: what the tests of its kernels share."""

import inspect
import os
import subprocess
import sys
from typing import Any

import torch
from ext_cases import scan_with

scan = scan_with("cpu")

SHAPES: dict[str, dict[str, Any]] = {
    "one tile": {"b": 1, "length": 70, "d": 19, "n": 16},
    "many tiles": {"b": 3, "length": 130, "d": 130, "n": 8},
    "packed": {"b": 1, "length": 150, "d": 130, "n": 16, "bounds": (0, 1, 1, 40, 104, 150)},
    "static": {"b": 5, "length": 90, "d": 70, "n": 16, "selective": "Δ"},
    "zoh": {"b": 2, "length": 90, "d": 70, "n": 16, "discretisation": "zoh"},
    "float64": {"b": 2, "length": 90, "d": 70, "n": 16, "dtype": torch.float64},
    "complex": {"b": 2, "length": 90, "d": 70, "n": 4, "complex_names": ("A", "B", "C")},
}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, for what can happen once in a process."""
    # A tree that is not installed is found through the path of this process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", inspect.cleandoc(code)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=600)
