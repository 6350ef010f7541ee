"""What ran: the package's own code, versions, machine and settings, for the record beside each number."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOMS = ("ext", "models", "tasks", "harness", "reports")
CODE = (".py", ".cu", ".cuh")
# Measured and quoted numbers live in the package but compute nothing.
NOT_CODE = ("results", "published")
DISTRIBUTIONS = (
    "torch",
    "lm_eval",
    "transformers",
    "datasets",
    "tokenizers",
    "numba",
    "numba_cuda",
    "numpy",
    "safetensors",
)
GIT_SECONDS = 20


def provenance(
    *, backend: str, kernel: str | None, device: str, dtype: str, command: str, **extra: Any
) -> dict[str, Any]:
    """What a record needs to say about its origin, as JSON values; `extra` adds keys (checkpoint, tokenizer, data…).

    The user's home directory is written as ~ everywhere but in the checkpoint's source, which stays as it was given;
    no host or user name is recorded. Raises ValueError without a backend, and for an extra key that is taken.
    """
    if not backend:
        raise ValueError("provenance needs the name of the backend that computed the numbers")
    found = versions()
    origin: dict[str, Any] = {
        "version": found.pop("mambalab"),
        "digest": package_digest(),
        **git_state(),
        "python": found.pop("python"),
        "versions": found,
        **machine(device),
        **gpu(device),
        "dtype": dtype,
        "backend": backend,
        "kernel": kernel,
        "command": command,
    }
    if taken := sorted(origin.keys() & extra.keys()):
        raise ValueError(f"provenance has its own {', '.join(taken)}")
    kept = {"checkpoint": extra.pop("checkpoint")} if "checkpoint" in extra else {}
    return without_home(origin | extra) | kept


def package_digest() -> str:
    """SHA-256 over the names and contents of the package's own code: equal from a checkout and from site-packages."""
    digest = hashlib.sha256()
    for name, path in _own_files():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _own_files() -> Iterator[tuple[str, Path]]:
    """Relative name ("ext/cpu.py") and path of each code file, sorted by name."""
    files = {}
    for room in ROOMS:
        folder = _folder(room)
        if folder is None:
            continue
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            if path.suffix in CODE and not set(NOT_CODE) & set(inside.parts) and path.is_file():
                files[f"{room}/{inside.as_posix()}"] = path
    yield from sorted(files.items())


def _folder(room: str) -> Path | None:
    """Where a room lies; each may have its own place (editable installs). Imports nothing of it."""
    spec = importlib.util.find_spec(f"{(__package__ or '').rpartition('.')[0]}.{room}")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]).resolve() if places else None


def git_state() -> dict[str, Any]:
    """{"commit", "dirty"} of the checkout that this very file is tracked in; both None when there is none.

    Dirty means: the code of the rooms, untracked files included, is not what the commit holds.
    """
    here = Path(__file__).resolve()
    commit = _git(here.parent, "rev-parse", "HEAD")
    if not commit or _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return {"commit": None, "dirty": None}
    rooms = [f":(top){room}" for room in ROOMS] + [f":(top,exclude)*/{name}/*" for name in NOT_CODE]
    changed = _git(here.parent, "status", "--porcelain", "--", *rooms)
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    # A surrounding git hook would point these variables at its own repository.
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=surroundings,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str | None]:
    """Version of Python and of each distribution that can change a number, None where absent; imports none."""
    found = {"python": platform.python_version(), "mambalab": own_version()}
    return found | {name: version(name) for name in DISTRIBUTIONS}


def own_version() -> str | None:
    """Version of this package: the checkout's, where it runs from one (an installed mambalab is then another one)."""
    return project().get("version") or version("mambalab")


def project() -> dict[str, Any]:
    """The [project] table of the checkout's pyproject.toml; empty where the package is installed."""
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    return tomllib.loads(path.read_text())["project"] if path.is_file() else {}


def version(distribution: str) -> str | None:
    """Installed version of a distribution, without importing it; None where absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory (GiB), threads, platform and device; torch is asked only if it is loaded already."""
    torch = sys.modules.get("torch")
    cores = usable_cores()
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if torch and device.startswith("cuda") else None,
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_gib": _memory_gib(),
        "threads": torch.get_num_threads() if torch else cores,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def gpu(device: str) -> dict[str, str | None]:
    """{"driver", "cuda", "nvrtc"}: versions of NVIDIA's driver, of torch's CUDA and of the compiler of our kernels.

    Empty for another device, and where torch is not loaded, which then computes nothing.
    """
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return {}
    from ..ext import nvrtc

    compiler = None if nvrtc.missing() else nvrtc.library().version
    return {"driver": _driver_version(), "cuda": torch.version.cuda, "nvrtc": compiler}


def _driver_version() -> str | None:
    """As nvidia-smi prints it ("580.82.07"); None without NVIDIA's management library."""
    found = ctypes.create_string_buffer(80)
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(found, len(found)):
            return None
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return found.value.decode()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        listing = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        listing = ""
    named = re.search(r"^(?:model name|Model|Processor)\s*:\s*(.+)$", listing, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def without_home(value: Any) -> Any:
    """`value` (strings, dicts and sequences) with the user's home directory written as ~."""
    if isinstance(value, dict):
        return {without_home(k): without_home(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(v) for v in value]
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111  (Path.home() raises where there is none)
    if not isinstance(value, str) or not home.startswith("/"):
        return value
    return re.sub(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])", "~", value)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
