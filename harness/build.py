"""Compile the GPU kernels ahead of time, on any machine, and say what each takes: `mambalab build`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ext.nvrtc import Resources, Variant

ROW = "{:<18} {:<24} {:<6} {:>9} {:>8} {:>8} {:>9}  {}"


def build_kernels(arch: str, out: str | None) -> Iterator[str]:
    """Compile every kernel for the architectures that `arch` lists into the folder `out`, by default the cache.

    Yields a line a kernel, between a header and a total. What lies there already is only looked at. Spills are bytes a
    thread, shared memory (without what a launch adds) and code are bytes. ValueError when an architecture is unknown,
    there is no NVRTC or no folder to write in; OSError when a file can't be written.
    """
    from ..ext import nvrtc

    architectures = _architectures(arch)
    folder = _folder(out)
    yield ROW.format("file", "kernel", "arch", "registers", "shared", "spilled", "bytes", "variant")
    variants, sizes = nvrtc.ahead(), {}
    for arch in architectures:
        for variant in variants:
            image = nvrtc.build(variant, arch, folder)
            sizes[variant.source, variant.defines, arch] = len(image.code)
            yield _row(variant, arch, nvrtc.read_log(image.log)[variant.name], len(image.code))
    kernels = len(variants) * len(architectures)
    yield f"{kernels} kernels in {len(sizes)} files, {sum(sizes.values()):,} bytes, in {folder}"


def _architectures(arch: str) -> list[str]:
    from ..ext import nvrtc

    if missing := nvrtc.missing():
        raise ValueError(missing)
    names = list(dict.fromkeys(name.strip() for name in arch.split(",")))
    for name in names:
        nvrtc.check_arch(name)
    return names


def _folder(out: str | None) -> Path:
    from ..ext import cubin_cache
    from .store import check_folder

    folder = Path(out) if out else cubin_cache.folder()
    if folder is None:
        raise ValueError("there is no home folder to keep a cache in; give --out DIR, or set MAMBALAB_CACHE")
    check_folder(folder)
    return folder


def _row(variant: Variant, arch: str, resources: Resources, size: int) -> str:
    defines = " ".join(f"{name}={value}" for name, value in variant.defines)
    spilled = resources.spill_stores + resources.spill_loads
    counts = (resources.registers, resources.shared, spilled, size)
    return ROW.format(variant.source, variant.name, arch, *counts, defines).rstrip()
