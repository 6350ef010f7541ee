"""The table of backends: what each computes, where, why it can't run here, and which one a device gets."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import reference, self_test

_log = logging.getLogger(__package__)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute the ops.

    The functions get checked tensors of any strides, with the arguments of their namesakes in `reference`, and return
    fresh contiguous tensors (`step` also writes its two states in place).
    """

    name: str
    device: str  # a torch device type, or "any"
    missing: Callable[[], str | None]  # why it can't run here; None when it can
    cure: str  # what to do about that
    sources: tuple[str, ...]  # its files beside this one, for the digest in a record's provenance
    scan_forward: Callable[..., Any]
    scan_backward: Callable[..., Any]
    conv_forward: Callable[..., Any]
    conv_backward: Callable[..., Any]
    norm_forward: Callable[..., Any]
    norm_backward: Callable[..., Any]
    step: Callable[..., Any]


class Status(NamedTuple):
    """What `mambalab doctor` prints of one backend; reason and cure are empty when the state is "usable"."""

    name: str
    device: str
    state: str  # "usable", "missing" (can't be loaded here) or "refused" (red self-test)
    reason: str
    cure: str


def _late(module: str, function: str) -> Callable[..., Any]:
    """The named function of a sibling that is imported at the first call, so that its absence breaks nobody else."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f".{module}", __package__), function)(*arguments)

    return call


def _import_error(module: str) -> str | None:
    """Why somebody else's `module` can't be imported; our own are left to the self-test, which no test skips."""
    try:
        import_module(module)
    except ImportError as error:
        return str(error)
    return None


BACKENDS = (
    Backend(
        name="cpu",
        device="cpu",
        missing=lambda: _import_error("numba"),
        cure="pip install numba",
        sources=(
            "cpu.py",
            "cpu_arrays.py",
            "cpu_chunks.py",
            "cpu_compile.py",
            "cpu_conv.py",
            "cpu_conv_kernels.py",
            "cpu_kernels.py",
            "cpu_memory.py",
            "cpu_norm.py",
            "cpu_norm_kernels.py",
            "cpu_pieces.py",
            "cpu_step.py",
            "cpu_step_kernels.py",
            "cpu_threads.py",
            "cpu_tiles.py",
            "lane_math.py",
            "lanes.py",
            "reference.py",
        ),
        scan_forward=_late("cpu", "scan_forward"),
        scan_backward=_late("cpu", "scan_backward"),
        conv_forward=_late("cpu_conv", "conv_forward"),
        conv_backward=_late("cpu_conv", "conv_backward"),
        norm_forward=_late("cpu_norm", "norm_forward"),
        norm_backward=_late("cpu_norm", "norm_backward"),
        step=_late("cpu_step", "step"),
    ),
    Backend(
        name="numba-cuda",
        device="cuda",
        missing=_late("numba_cuda_probe", "missing"),
        cure='pip install "mambalab[numba-cuda]"',
        sources=(
            "numba_cuda.py",
            "numba_cuda_arrays.py",
            "numba_cuda_backward.py",
            "numba_cuda_conv.py",
            "numba_cuda_conv_kernels.py",
            "numba_cuda_math.py",
            "numba_cuda_norm.py",
            "numba_cuda_plan.py",
            "numba_cuda_probe.py",
            "numba_cuda_scan_kernels.py",
            "numba_cuda_segments.py",
            "numba_cuda_step.py",
            "numba_cuda_tiles.py",
            "reference.py",
        ),
        scan_forward=_late("numba_cuda", "scan_forward"),
        scan_backward=_late("numba_cuda", "scan_backward"),
        conv_forward=_late("numba_cuda_conv", "conv_forward"),
        conv_backward=_late("numba_cuda_conv", "conv_backward"),
        norm_forward=_late("numba_cuda_norm", "norm_forward"),
        norm_backward=_late("numba_cuda_norm", "norm_backward"),
        step=_late("numba_cuda_step", "step"),
    ),
    Backend(
        name="reference",
        device="any",
        missing=lambda: None,
        cure="",
        sources=("reference.py",),
        scan_forward=reference.scan_forward,
        scan_backward=reference.scan_backward,
        conv_forward=reference.conv_forward,
        conv_backward=reference.conv_backward,
        norm_forward=reference.norm_forward,
        norm_backward=reference.norm_backward,
        step=reference.step,
    ),
)

_picked: dict[tuple[torch.device | str, str | None], Backend] = {}
_verdicts: dict[tuple[Backend, torch.device], str | None] = {}


def pick(device: torch.device | str, name: str | None = None) -> Backend:
    """The backend called `name`, or else the first usable one of the device; tested before its first use.

    A backend asked for by name never falls back. Raises ValueError when the name is unknown or of another device, or
    when nothing can run; RuntimeError when the first use falls inside a CUDA graph capture.
    """
    row = _picked.get((device, name))
    if row is None:
        place = _with_index(torch.device(device))
        row = _picked.get((place, name)) or (_default(place) if name is None else _named(place, name))
        _picked[device, name] = _picked[place, name] = row
    return row


def prepare(device: torch.device | str = "cpu", backend: str | None = None) -> str:
    """Compile and test the backend of `device` now, so that a first use costs nothing later; returns its name."""
    return pick(device, backend).name


def chosen(device: torch.device | str) -> str:
    """The name of the backend that `device` gets when none is asked for: what a record's provenance holds."""
    return pick(device).name


def kernel_digest(name: str) -> str:
    """SHA-256 over the sources of the backend called `name`."""
    digest = hashlib.sha256()
    for source in _row(name).sources:
        digest.update((Path(__file__).parent / source).read_bytes())
    return digest.hexdigest()


def status() -> list[Status]:
    """The state of every backend here, with reason and cure; compiles and tests those that it can."""
    return [_status(row) for row in BACKENDS]


def _status(row: Backend) -> Status:
    missing = row.missing()
    reason = missing or _reason(row, _with_index(torch.device("cpu" if row.device == "any" else row.device)))
    if reason is None:
        return Status(row.name, row.device, "usable", "", "")
    return Status(row.name, row.device, "missing" if missing else "refused", reason, _cure(row))


def _row(name: str) -> Backend:
    rows = {row.name: row for row in BACKENDS}
    if name not in rows:
        text = str(name)[:80]
        raise ValueError(f"unknown backend {text!r}; nearest: {', '.join(get_close_matches(text, rows) or rows)}")
    return rows[name]


def _named(device: torch.device, name: str) -> Backend:
    row = _row(name)
    if row.device not in ("any", device.type):
        raise ValueError(f"backend {name!r} runs on {row.device}, but the tensors are on {device}")
    reason = _reason(row, device)
    if reason is not None:
        raise ValueError(f"backend {name!r} can't run on {device}: {reason} (cure: {_cure(row)})")
    return row


def _default(device: torch.device) -> Backend:
    refused = []
    for row in BACKENDS:
        if row.device == device.type:
            reason = _reason(row, device)
            if reason is None:
                _log.info("backend %s on %s", row.name, device)
                return row
            refused.append(f"{row.name}: {reason} (cure: {_cure(row)})")
    reasons = "; ".join(refused) or "none is written for it"
    if device.type == "cpu":
        _log.warning("the slow backend 'reference' on cpu, for want of a faster one: %s", reasons)
        return _named(device, "reference")
    raise ValueError(f"no backend can run on {device}: {reasons}; backend='reference' would, slowly")


def _reason(row: Backend, device: torch.device) -> str | None:
    """Why `row` can't be used on `device`: it is missing, or failed its self-test; None when it can."""
    if (row, device) not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the first use of backend {row.name!r} falls inside a CUDA graph capture; "
                f"call mambalab.ext.prepare({str(device)!r}) before it"
            )
        _verdicts[row, device] = row.missing() or self_test.failure(row, device)
    return _verdicts[row, device]


def _cure(row: Backend) -> str:
    return row.cure if row.missing() else "report it with the output of `mambalab doctor`"


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
