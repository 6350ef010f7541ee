"""`mambalab build` makes a cache of kernels for GPUs that are not here, and refuses in one line what it can't do."""

from __future__ import annotations

import pytest
from command import files, mambalab, refused
from mambalab.ext import cubin_cache, nvrtc
from mambalab.ext.nvrtc import Variant

VARIANTS = [Variant("scan_sum.cu", "scan_sum", (("ELEMENT", element),)) for element in (0, 1)]
needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Two variants stand for them all."""
    monkeypatch.setattr(nvrtc, "ahead", lambda: VARIANTS)


@needs_nvrtc
def test_every_kernel_is_a_line_for_every_architecture(tmp_path):
    answer = mambalab("build", "--arch", "sm_80, sm_100", "--out", tmp_path / "kernels")
    assert answer.status == 0, answer.err
    header, *rows, total = answer.out.splitlines()
    assert header.split() == ["file", "kernel", "arch", "registers", "shared", "spilled", "bytes", "variant"]
    assert [row.split()[:3] for row in rows] == [
        ["scan_sum.cu", "scan_sum", arch] for arch in ("sm_80", "sm_100") for _ in VARIANTS
    ]
    assert [row.split()[-1] for row in rows] == ["ELEMENT=0", "ELEMENT=1"] * 2
    assert all(0 < int(row.split()[3]) <= 255 for row in rows)
    size = sum(int(row.split()[6]) for row in rows)
    assert total == f"4 kernels in 4 files, {size:,} bytes, in {tmp_path / 'kernels'}"


@needs_nvrtc
def test_what_was_built_is_a_cache(tmp_path, monkeypatch):
    def compile_again(*_: object) -> None:
        raise AssertionError

    first = mambalab("build", "--arch", "sm_90", "--out", tmp_path)
    monkeypatch.setattr(nvrtc.Library, "compile", compile_again)
    monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path))
    for variant in VARIANTS:
        assert nvrtc.cubin(variant.source, variant.defines, "sm_90")[:4] == b"\x7fELF"
    assert mambalab("build", "--arch", "sm_90").out == first.out


@needs_nvrtc
@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("sm_90,hopper", "unknown architecture 'hopper'; NVRTC "),
        ("sm_75", "unknown architecture 'sm_75'"),
        ("", "unknown architecture ''"),
        ("sm_90,", "unknown architecture ''"),
    ],
)
def test_an_unknown_architecture_is_refused_before_anything_is_written(tmp_path, arch, says):
    assert says in refused(mambalab("build", "--arch", arch, "--out", tmp_path / "kernels"))
    assert list(tmp_path.iterdir()) == []


@needs_nvrtc
def test_a_folder_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(mambalab("build", "--arch", "sm_90", "--out", tmp_path / "file" / "kernels"))
    assert f"can't write in {tmp_path / 'file' / 'kernels'}" in line
    assert files(tmp_path) == {"file": 0}


@needs_nvrtc
def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cubin_cache, "write", full)
    answer = mambalab("build", "--arch", "sm_90", "--out", tmp_path)
    assert answer.status == 2
    assert answer.err.splitlines()[-1] == "mambalab: writing to the output: No space left on device"


@needs_nvrtc
def test_without_a_home_a_folder_has_to_be_named(monkeypatch):
    monkeypatch.setattr(cubin_cache, "folder", lambda: None)
    assert "give --out DIR, or set MAMBALAB_CACHE" in refused(mambalab("build", "--arch", "sm_90"))


def test_without_nvrtc_it_is_said_what_is_missing(tmp_path, monkeypatch):
    nvrtc.library.cache_clear()
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(()))
    line = refused(mambalab("build", "--out", tmp_path / "kernels"))
    assert "no NVRTC (libnvrtc.so)" in line
    assert "pip install nvidia-cuda-nvrtc" in line
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_can_not_be_compiled_is_one_line(monkeypatch, capsys):
    from mambalab.ext.nvrtc import KernelError
    from mambalab.harness import build, cli

    def fail(arch, out):
        raise KernelError("toy.cu for sm_90 does not compile: an error\nand the compiler's log")

    monkeypatch.setattr(build, "build_kernels", fail)
    with pytest.raises(SystemExit) as raised:
        cli.main(["build", "--arch", "sm_90"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1:] == ["mambalab: toy.cu for sm_90 does not compile: an error"]
