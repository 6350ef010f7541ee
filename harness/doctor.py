"""What works on this machine and what does not, each with its reason and its cure: `mambalab doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import one_line
from .provenance import git_state, machine, own_version, package_digest, project, usable_cores, version, without_home

if TYPE_CHECKING:
    from packaging.requirements import Requirement

STATES = ("ok", "warning", "problem")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at: its state ("ok", "warning": works with a loss, "problem": does not work), and the cure."""

    state: str
    subject: str
    text: str
    cure: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, not {self.state!r}")


Probe = Callable[[], Iterator[Finding]]


def diagnose(*, hub: bool = False) -> list[Finding]:
    """Look at everything, in order; a probe that breaks is itself a finding. The hub is asked only with `hub`."""
    probes = PROBES | ({"hub reachable": _hub_answers} if hub else {})
    findings = []
    for subject, probe in probes.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                findings += list(probe())
        except Exception as error:
            text = f"this check broke: {type(error).__name__}: {one_line(error)}"
            findings.append(Finding(state="problem", subject=subject, text=text))
    return findings


def render(findings: list[Finding]) -> str:
    """The findings as aligned lines, a cure under its finding, and a last line that counts what is not ok."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.subject:<{width}}  {' '.join(finding.text.split())}")
        if finding.cure:
            lines.append(f"{'':<8} {'':<{width}}  cure: {' '.join(finding.cure.split())}")
    counts = [sum(finding.state == state for finding in findings) for state in ("problem", "warning")]
    lines.append(f"{counts[0]} problem{'s' * (counts[0] != 1)}, {counts[1]} warning{'s' * (counts[1] != 1)}")
    return without_home("\n".join(lines))


def _python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet(
        project().get("requires-python") or importlib.metadata.metadata("mambalab")["Requires-Python"]
    )
    fits = wanted.contains(platform.python_version(), prereleases=True)
    yield Finding(
        state="ok" if fits else "problem",
        subject="python",
        text=f"{platform.python_version()} (needs {wanted})",
        cure="" if fits else "make a virtual environment with a newer Python",
    )


def _package() -> Iterator[Finding]:
    git = git_state()
    at = f", commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git["commit"] else ""
    yield Finding(state="ok", subject="mambalab", text=f"{own_version()}, code {package_digest()[:12]}{at}")


def _dependencies() -> Iterator[Finding]:
    for requirement in _requirements():
        yield _dependency(requirement)


def _requirements() -> list[Requirement]:
    """What every install needs (no extras): by the checkout's pyproject, else by the installed metadata."""
    from packaging.requirements import Requirement

    lines = project().get("dependencies") or importlib.metadata.requires("mambalab") or []
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def _dependency(requirement: Requirement) -> Finding:
    name, installed = requirement.name, version(requirement.name)
    cure = f"pip install '{requirement}'"
    if installed is None:
        return Finding(state="problem", subject=name, text=f"not installed (needs {requirement})", cure=cure)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(state="problem", subject=name, text=f"{installed}, but needs {requirement.specifier}", cure=cure)
    try:
        importlib.import_module(name.replace("-", "_"))
    except Exception as error:
        text = f"{installed} is installed but does not load: {type(error).__name__}: {one_line(error)}"
        return Finding(state="problem", subject=name, text=text, cure=f"pip install --force-reinstall '{requirement}'")
    return Finding(state="ok", subject=name, text=f"{installed} (needs {requirement.specifier or 'any'})")


def _devices() -> Iterator[Finding]:
    import torch

    here = machine()
    yield Finding(
        state="ok",
        subject="cpu",
        text=f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, {here['platform']}",
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(found):
        about = torch.cuda.get_device_properties(index)
        text = f"{about.name}, sm_{about.major}{about.minor}, {about.total_memory / 2**30:.0f} GiB"
        yield Finding(state="ok", subject=f"cuda:{index}", text=text)
    if not found:
        yield _no_gpu(torch.version.cuda, " ".join(str(warning.message) for warning in said))


def _no_gpu(built_for: str | None, reason: str) -> Finding:
    built = f"torch is built for CUDA {built_for}" if built_for else "torch is built without CUDA"
    if not Path("/dev/nvidia0").exists():
        return Finding(state="ok", subject="cuda", text=f"no NVIDIA GPU; {built}")
    cure = "update the driver, or install a torch for the driver's CUDA" if built_for else "install a torch with CUDA"
    text = f"an NVIDIA GPU that can't be used; {built}" + (f"; {reason}" if reason else "")
    return Finding(state="warning", subject="cuda", text=text, cure=cure)


def _backends() -> Iterator[Finding]:
    import torch

    from ..ext import backends

    for row in backends.status():
        subject = f"backend {row.name}"
        if row.state == "usable":
            yield Finding(state="ok", subject=subject, text=f"usable on {row.device}, passed its self-test")
        elif row.device == "cuda" and not torch.cuda.is_available():
            yield Finding(state="ok", subject=subject, text=f"not for this machine: {row.reason}", cure=row.cure)
        else:
            state = "problem" if row.state == "refused" else "warning"
            yield Finding(state=state, subject=subject, text=f"{row.state}: {row.reason}", cure=row.cure)


def _compiler() -> Iterator[Finding]:
    import torch

    from ..ext import cubin_cache, nvrtc

    if missing := nvrtc.missing():
        state = "warning" if torch.cuda.is_available() else "ok"
        yield Finding(state=state, subject="nvrtc", text=missing)
    else:
        found = nvrtc.library()
        yield Finding(state="ok", subject="nvrtc", text=f"{found.version}, {found.path}")
    cure = "set MAMBALAB_CACHE to a folder you can write in"
    folder = cubin_cache.folder()
    if folder is None:
        yield Finding(state="warning", subject="kernel cache", text="none: there is no home folder", cure=cure)
    else:
        yield _writable("kernel cache", folder, cure)


def _threads() -> Iterator[Finding]:
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} for {cores} cores" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    crowded = threads > cores
    cure = f"set OMP_NUM_THREADS={cores}" if crowded else ""
    yield Finding(state="warning" if crowded else "ok", subject="threads", text=text, cure=cure)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, try_to_load_from_cache

    from .tokenizer import GPT_NEOX

    offline = constants.HF_HUB_OFFLINE
    asks = "is never asked (HF_HUB_OFFLINE is set)" if offline else "is asked for what the cache lacks"
    yield Finding(state="ok", subject="hub", text=f"{constants.ENDPOINT} {asks}")
    cached = isinstance(try_to_load_from_cache(GPT_NEOX, "tokenizer.json"), str)
    yield Finding(
        state="warning" if offline and not cached else "ok",
        subject="tokenizer",
        text=f"{GPT_NEOX} is {'in' if cached else 'not in'} the hub's cache",
        cure="" if cached else "give --tokenizer a tokenizer.json where the hub is out of reach",
    )


def _hub_answers() -> Iterator[Finding]:
    from .data import DATASETS, hub_revision

    try:
        hub_revision(DATASETS["piqa"])
    except ConnectionError as error:
        cure = "check network and proxy, or work from local directories (--data, --tokenizer, MODEL as a path)"
        yield Finding(state="problem", subject="hub reachable", text=f"no: {error}", cure=cure)
    else:
        yield Finding(state="ok", subject="hub reachable", text="yes")


def _caches() -> Iterator[Finding]:
    from datasets import config
    from huggingface_hub import constants

    yield _writable("hub cache", Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder you can write in")
    yield _writable("datasets cache", Path(config.HF_DATASETS_CACHE), "set HF_HOME to a folder you can write in")
    yield _writable("numba cache", _numba_cache(), "set NUMBA_CACHE_DIR to a folder you can write in")


def _numba_cache() -> Path:
    """Where compiled kernels are kept: numba's own folder if it is set, else beside the code."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / "ext" / "__pycache__"


def _writable(subject: str, folder: Path, cure: str) -> Finding:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Finding(state="ok", subject=subject, text=str(folder))
    except OSError as error:
        text = f"can't write in {folder}: {error.strerror}"
        return Finding(state="warning", subject=subject, text=text, cure=cure)


def _data() -> Iterator[Finding]:
    named = os.environ.get("MAMBALAB_DATA")
    if not named:
        text = "MAMBALAB_DATA is not set: eval takes --data, the tests do without the real sets"
        yield Finding(state="ok", subject="data", text=text)
        return
    directory = Path(named) / "zero_shot" if (Path(named) / "zero_shot").is_dir() else Path(named)
    try:
        yield Finding(state="ok", subject="data", text=f"{directory}: {_held(directory)}")
    except ValueError as error:
        cure = f"fill it again: mambalab fetch {directory}"
        yield Finding(state="problem", subject="data", text=one_line(error), cure=cure)


def _held(directory: Path) -> str:
    """What a data directory holds for the six tasks; ValueError for the first thing wrong with it."""
    from .data import DATASETS, check_documents, check_manifest

    check_manifest(directory)
    manifest = "matches its manifest" if (directory / "manifest.json").is_file() else "no manifest"
    held = {task for task, dataset in DATASETS.items() if (directory / dataset.repo / (dataset.folder or "")).is_dir()}
    counts = [f"{task} {check_documents(directory, task) or 'as Parquet'}" for task in DATASETS if task in held]
    lacking = [f"no {task}" for task in DATASETS if task not in held]
    return f"{manifest}; {', '.join(counts + lacking)}"


PROBES: dict[str, Probe] = {
    "python": _python,
    "mambalab": _package,
    "dependencies": _dependencies,
    "devices": _devices,
    "backends": _backends,
    "compiler": _compiler,
    "threads": _threads,
    "hub": _hub,
    "caches": _caches,
    "data": _data,
}
