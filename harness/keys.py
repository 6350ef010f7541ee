"""What decides an evaluation's numbers, as content keys: of a run, and of the answers that one may take over."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .zero_shot import Settings

# Of the provenance, by content: what decides a number.
DECIDING = ("digest", "versions", "device", "dtype", "backend", "kernel", "tokenizer", "data", "task_version", "asked")
# Of the provenance: what may decide a number's last bits.
ROUNDING = ("python", "cpu", "device_name", "driver", "cuda", "nvrtc", "threads")
# What the environment may say to the libraries that do arithmetic.
ARITHMETIC = ("OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_", "CUBLAS_", "NVIDIA_", "NUMBA_")


def run_key(settings: Settings, origin: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides a run's numbers, by content and not by path."""
    decides = asdict(replace(settings, model="", data=None, tokenizer=None, revision=None, device=None, offline=False))
    decides |= {f"provenance.{name}": origin.get(name) for name in DECIDING}
    return content_key(decides | {"checkpoint": origin["checkpoint"]["digest"]})


def answers_key(settings: Settings, origin: Mapping[str, Any]) -> str:
    """SHA-256 of what a model's answers depend on to the last bit: the run's key and how this machine rounds.

    How a matrix product is cut up, and so how it rounds, is up to the processor, the threads and the libraries' own
    settings. So another number of threads starts afresh: that costs time where the bits are the same after all.
    """
    import torch

    decides = {name: origin.get(name) for name in ROUNDING} | {"run": run_key(settings, origin)}
    decides |= {"machine": platform.machine(), "libc": platform.libc_ver()}
    decides |= {"vectors": torch.backends.cpu.get_cpu_capability()}
    decides |= {name: value for name, value in os.environ.items() if name.startswith(ARITHMETIC)}
    return content_key(decides)


def content_key(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
