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

FOLDER = Path(__file__).parent

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
    sources: tuple[str, ...]  # its files, from this folder, for the digest in a record's provenance
    complex_A: bool = True  # whether the scan and the step take a complex A
    splits: bool = False  # whether it cuts long sequences into pieces, which the self-test then asks for too
    scan_forward: Callable[..., Any]
    scan_backward: Callable[..., Any]
    # scan_forward that gives states beside its results, which scan_backward takes behind its arguments (see kept.py).
    scan_keeping: Callable[..., Any] | None = None
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


def _files(*patterns: str) -> tuple[str, ...]:
    """The files of this folder that match, by name: a file that is added to a backend counts without being listed."""
    return tuple(sorted(path.relative_to(FOLDER).as_posix() for pattern in patterns for path in FOLDER.glob(pattern)))


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
        sources=_files("cpu*.py", "lane*.py", "reference.py"),
        scan_forward=_late("cpu", "scan_forward"),
        scan_backward=_late("cpu", "scan_backward"),
        conv_forward=_late("cpu_conv", "conv_forward"),
        conv_backward=_late("cpu_conv", "conv_backward"),
        norm_forward=_late("cpu_norm", "norm_forward"),
        norm_backward=_late("cpu_norm", "norm_backward"),
        step=_late("cpu_step", "step"),
    ),
    Backend(
        name="cuda",
        device="cuda",
        missing=_late("cuda_launch", "missing"),
        cure="a GPU of sm_80 or later with its driver, and torch's CUDA build",
        sources=_files("cuda*.py", "kept.py", "nvrtc.py", "cubin_cache.py", "csrc/*.cu", "csrc/*.cuh", "reference.py"),
        complex_A=False,
        splits=True,
        scan_forward=_late("cuda", "scan_forward"),
        scan_backward=_late("cuda", "scan_backward"),
        scan_keeping=_late("cuda", "scan_keeping"),
        conv_forward=_late("cuda_conv", "conv_forward"),
        conv_backward=_late("cuda_conv", "conv_backward"),
        norm_forward=_late("cuda_norm", "norm_forward"),
        norm_backward=_late("cuda_norm", "norm_backward"),
        step=_late("cuda_step", "step"),
    ),
    Backend(
        name="numba-cuda",
        device="cuda",
        missing=_late("numba_cuda_probe", "missing"),
        cure='pip install "mambalab[numba-cuda]"',
        sources=_files("numba_cuda*.py", "reference.py"),
        splits=True,
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

_picked: dict[tuple[torch.device | str, str | None, bool], Backend] = {}
_verdicts: dict[tuple[Backend, torch.device], str | None] = {}


def pick(device: torch.device | str, name: str | None = None, complex_A: bool = False) -> Backend:
    """The backend called `name`, or else the first usable one of the device; tested before its first use.

    With `complex_A` it is one that takes a complex A. A backend asked for by name never falls back. Raises ValueError
    when the name is unknown, of another device or without a complex A, or when nothing can run; RuntimeError when the
    first use falls inside a CUDA graph capture.
    """
    row = _picked.get((device, name, complex_A))
    if row is None:
        place = _with_index(torch.device(device))
        row = _picked.get((place, name, complex_A))
        if row is None:
            row = _default(place, complex_A) if name is None else _named(place, name, complex_A)
        _picked[device, name, complex_A] = _picked[place, name, complex_A] = row
    return row


@torch.compiler.assume_constant_result
def keeps(device: torch.device | str, name: str | None, complex_A: bool) -> bool:
    """Whether the backend that `pick` would give, as far as is known, keeps states of a scan for its backward pass.

    Nothing is tested for the answer, which may be asked for inside a transform or of a device without a backend.
    """
    place = _with_index(torch.device(device))
    rows = (
        row
        for row in BACKENDS
        if row.device == place.type and name in (None, row.name) and (row.complex_A or not complex_A)
    )
    row = next((row for row in rows if _verdicts.get((row, place)) is None), None)
    return row is not None and row.scan_keeping is not None


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
        digest.update((FOLDER / source).read_bytes())
    return digest.hexdigest()


def status() -> list[Status]:
    """The state of every backend here, with reason and cure; compiles and tests those that it can."""
    return [_status(row) for row in BACKENDS]


def _status(row: Backend) -> Status:
    missing = row.missing()
    reason = missing or _reason(row, _with_index(torch.device("cpu" if row.device == "any" else row.device)))
    if reason is None:
        return Status(row.name, row.device, "usable", "", "")
    return Status(row.name, row.device, "missing" if missing else "refused", *_advice(row, reason))


def _row(name: str) -> Backend:
    rows = {row.name: row for row in BACKENDS}
    if name not in rows:
        text = str(name)[:80]
        raise ValueError(f"unknown backend {text!r}; nearest: {', '.join(get_close_matches(text, rows) or rows)}")
    return rows[name]


def _named(device: torch.device, name: str, complex_A: bool) -> Backend:
    row = _row(name)
    if row.device not in ("any", device.type):
        raise ValueError(f"backend {name!r} runs on {row.device}, but the tensors are on {device}")
    if complex_A and not row.complex_A:
        others = (other.name for other in BACKENDS if other.complex_A and other.device in ("any", device.type))
        raise ValueError(f"backend {name!r} has no complex A; these have: {', '.join(others)}")
    reason = _reason(row, device)
    if reason is not None:
        raise ValueError("backend {!r} can't run on {}: {} (cure: {})".format(name, device, *_advice(row, reason)))
    return row


def _default(device: torch.device, complex_A: bool) -> Backend:
    refused = []
    for row in BACKENDS:
        if row.device != device.type:
            continue
        if complex_A and not row.complex_A:
            refused.append(f"{row.name}: has no complex A")
            continue
        reason = _reason(row, device)
        if reason is None:
            _log.info("backend %s on %s%s", row.name, device, " for a complex A" if complex_A else "")
            return row
        refused.append("{}: {} (cure: {})".format(row.name, *_advice(row, reason)))
    reasons = "; ".join(refused) or "none is written for it"
    if device.type == "cpu":
        _log.warning("the slow backend 'reference' on cpu, for want of a faster one: %s", reasons)
        return _named(device, "reference", complex_A)
    raise ValueError(f"no backend can run on {device}: {reasons}; backend='reference' would, slowly")


def _reason(row: Backend, device: torch.device) -> str | None:
    """Why `row` can't be used on `device`: it is missing, or failed its self-test; None when it can."""
    if (row, device) not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the first use of backend {row.name!r} falls inside a CUDA graph capture; "
                f"call mambalab.ext.prepare({str(device)!r}) before it"
            )
        _verdicts[row, device] = row.missing() or self_test.failure(row, device)
    return _verdicts[row, device]


def _advice(row: Backend, reason: str) -> tuple[str, str]:
    """The reason and its cure, with which it may end."""
    bare, said, cure = reason.rpartition(" (cure: ")
    if said:
        return bare, cure.removesuffix(")")
    return reason, row.cure if row.missing() else "report it with the output of `mambalab doctor`"


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        # Without a GPU there is no current one to ask for; the rows say what is missing.
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return device
