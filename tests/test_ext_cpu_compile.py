"""How kernels of the CPU are compiled: for few signatures, and kept in a cache that knows their sources."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_cases import SHAPES, scan
from ext_cases import scan_case

pytest.importorskip("numba", reason="the CPU kernels are compiled by Numba")
from mambalab.ext import cpu, cpu_compile, cpu_kernels
from numba import njit


def test_no_call_compiles_more_than_six_signatures():
    for shape in SHAPES.values():
        scan_case(**shape).run(scan)
    kernels: Any = cpu_kernels.scan_forward, cpu_kernels.scan_backward
    assert sum(len(kernel.signatures) for kernel in kernels) <= 6
    assert not any(kernel._can_compile for kernel in kernels)


def test_every_file_with_a_kernel_or_a_piece_of_one_keys_the_cache():
    folder = Path(cpu_compile.__file__).parent
    pieces = re.compile(r"^@(njit|kernel|inline|intrinsic|register_jitable|overload)", re.MULTILINE)
    compiled = {file.name for file in folder.glob("*.py") if pieces.search(file.read_text("utf-8"))}
    assert compiled == set(cpu_compile.SOURCES)


def test_the_cache_is_keyed_by_all_sources(monkeypatch):
    kernel: Any = cpu_kernels.scan_forward
    cache, codegen = cpu_compile._Cache(kernel.py_func), kernel.targetctx.codegen()
    before = cache._index_key((), codegen)
    monkeypatch.setattr(cpu_compile, "_sources", lambda: "another digest")
    assert cache._index_key((), codegen) != before


def test_kernels_compile_without_a_cache_where_no_folder_can_be_written(monkeypatch, caplog):
    def refuse(function):
        raise RuntimeError("cannot cache: no locator available")

    monkeypatch.setattr(cpu_compile, "_Cache", refuse)
    kernel: Any = njit(cpu_kernels.scan_forward.py_func)
    with caplog.at_level("INFO", "mambalab.ext"):
        cpu_compile._keep_on_disk(kernel)
    assert kernel._cache.cache_path is None
    assert ["compiling" in text or "cannot cache" in text for text in caplog.messages] == [True, True]


def test_a_miss_of_the_cache_says_that_it_compiles(monkeypatch, caplog):
    monkeypatch.setattr(cpu_compile, "_sources", lambda: "another digest")
    kernel = cpu_kernels.scan_forward
    signature = cpu_compile._signature(cpu._FORWARD, torch.float32)
    assert cpu_compile._Cache(kernel.py_func).load_overload(signature, kernel.targetctx) is None
    assert "compiling a CPU kernel" in caplog.text
