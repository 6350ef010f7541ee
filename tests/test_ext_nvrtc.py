"""Kernels are compiled once, kept where nothing can harm them, and never read wrong; what fails says so in one line."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mambalab.ext import cubin_cache, nvrtc
from mambalab.ext.nvrtc import Resources

HEADER = "__device__ inline float twice(float x) { return 2 * x; }\n"
SOURCE = """#include "twice.cuh"
struct Arguments { const float* x; float* y; };
extern "C" __global__ void double_all(const Arguments a) {
  __shared__ float tile[SIZE];
  tile[threadIdx.x] = a.x[threadIdx.x];
  __syncthreads();
  a.y[threadIdx.x] = twice(tile[threadIdx.x ^ 1]);
}
"""
DEFINES = (("SIZE", 32),)

needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))


@pytest.fixture
def csrc(tmp_path) -> Path:
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "toy.cu").write_text(SOURCE)
    (folder / "twice.cuh").write_text(HEADER)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    cubin_cache.warn.cache_clear()
    monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """What NVRTC compiles from here on."""
    done: list[str] = []
    compile_ = nvrtc.Library.compile

    def counted(self, work, options):
        done.append(str(work))
        return compile_(self, work, options)

    monkeypatch.setattr(nvrtc.Library, "compile", counted)
    return done


@pytest.fixture
def no_nvrtc(monkeypatch):
    """A function that takes NVRTC away."""

    def take():
        nvrtc.library.cache_clear()
        monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(["libnvrtc.so.of.nowhere"]))

    yield take
    nvrtc.library.cache_clear()


def _entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def _toy(csrc: Path, arch: str = "sm_90") -> bytes:
    return nvrtc.cubin("toy.cu", DEFINES, arch, csrc=csrc)


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_a_source_and_its_headers_become_a_cubin(csrc, arch):
    assert _toy(csrc, arch)[:4] == b"\x7fELF"
    (name, taken), *others = nvrtc.resources("toy.cu", DEFINES, arch, csrc=csrc).items()
    assert (name, others) == ("double_all", [])
    assert 0 < taken.registers <= 32
    assert taken[1:] == (128, 0, 0, 0)


def test_the_log_of_the_assembler_is_read_a_kernel_at_a_time():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
ptxas         .     400 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 400 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    assert nvrtc.read_log(log) == {
        "first": Resources(255, 128, 400, 24, 28),
        "second": Resources(8, 0, 0, 0, 0),
    }


@needs_nvrtc
def test_what_was_compiled_once_is_not_compiled_again(csrc, compiled):
    assert _toy(csrc) == _toy(csrc)
    assert compiled == ["toy.cu for sm_90 (SIZE=32)"]


CHANGES = {
    "the source": lambda csrc, patch: (csrc / "toy.cu").write_text(SOURCE + "\n"),
    "a header": lambda csrc, patch: (csrc / "twice.cuh").write_text(HEADER.replace("2", "3")),
    "the options": lambda csrc, patch: patch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "--fmad=false")),
    "the compiler": lambda csrc, patch: patch.setattr(nvrtc.library(), "version", "13.99"),
    "a macro": lambda csrc, patch: patch.setattr(sys.modules[__name__], "DEFINES", (("SIZE", 64),)),
}


@needs_nvrtc
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_the_code_is_compiled_anew_and_kept_beside(csrc, cache, compiled, monkeypatch, change):
    _toy(csrc)
    change(csrc, monkeypatch)
    _toy(csrc)
    assert len(compiled) == 2
    assert len(_entries(cache)) == 2


@needs_nvrtc
def test_a_file_that_is_not_included_changes_nothing(csrc, compiled):
    _toy(csrc)
    (csrc / "other.cuh").write_text("int other;")
    _toy(csrc)
    assert len(compiled) == 1


@needs_nvrtc
def test_a_harmed_entry_is_compiled_again_and_put_right(csrc, cache, compiled):
    code = _toy(csrc)
    (entry,) = _entries(cache)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert _toy(csrc) == code
    assert len(compiled) == 2
    assert entry.read_bytes() == whole
    assert _entries(cache) == [entry]


@needs_nvrtc
def test_an_entry_under_the_name_of_another_is_not_taken_for_it(csrc, cache, compiled):
    _toy(csrc, "sm_80")
    (entry,) = _entries(cache)
    wrong = entry.read_bytes()
    right = _toy(csrc, "sm_90")
    (other,) = set(_entries(cache)) - {entry}
    other.write_bytes(wrong)
    assert _toy(csrc, "sm_90") == right
    assert len(compiled) == 3


@needs_nvrtc
def test_a_folder_that_can_not_be_written_is_one_warning_and_no_cache(csrc, tmp_path, monkeypatch, compiled, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAMBALAB_CACHE", str(tmp_path / "file" / "cache"))
    for arch in ("sm_80", "sm_90", "sm_90"):
        assert _toy(csrc, arch)[:4] == b"\x7fELF"
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "can't be kept" in warning.getMessage()
    assert "MAMBALAB_CACHE" in warning.getMessage()
    assert len(compiled) == 3


@needs_nvrtc
def test_a_user_without_a_home_goes_without_a_cache(csrc, monkeypatch, caplog):
    monkeypatch.delenv("MAMBALAB_CACHE")
    monkeypatch.setattr(cubin_cache, "folder", lambda: None)
    assert _toy(csrc)[:4] == b"\x7fELF"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "compiled CUDA kernels can't be kept: the user has no home; every process compiles its own "
        "(cure: set MAMBALAB_CACHE to a folder you can write in)"
    ]


@needs_nvrtc
def test_a_hit_writes_nothing_so_a_read_only_cache_is_read(csrc, monkeypatch):
    def no_write(*_: object) -> None:
        raise AssertionError

    code = _toy(csrc)
    monkeypatch.setattr(cubin_cache, "write", no_write)
    assert _toy(csrc) == code


@needs_nvrtc
def test_a_disk_that_fills_up_leaves_nothing_behind(csrc, cache, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert _toy(csrc)[:4] == b"\x7fELF"
    assert _entries(cache) == []
    assert "No space left on device" in caplog.text


@needs_nvrtc
def test_an_entry_that_all_may_write_is_not_loaded_but_replaced(csrc, cache, compiled, caplog):
    _toy(csrc)
    (entry,) = _entries(cache)
    entry.chmod(0o666)
    _toy(csrc)
    assert len(compiled) == 2
    assert "not loaded" in caplog.text
    assert stat.S_IMODE(entry.stat().st_mode) == 0o644


COMPILE = """
import sys
from pathlib import Path
from mambalab.ext import nvrtc
for size in range(32, 37):
    print(hash(nvrtc.cubin("toy.cu", (("SIZE", size),), "sm_90", csrc=Path(sys.argv[1]))))
"""


@needs_nvrtc
def test_two_processes_that_compile_at_once_both_succeed(csrc, cache):
    command = [sys.executable, "-c", COMPILE, str(csrc)]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=90)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert len(said[0]) == 5
    assert len(_entries(cache)) == 5
    assert all(cubin_cache.read(path) for path in _entries(cache))


@needs_nvrtc
def test_an_error_in_a_source_is_named_in_the_first_line(csrc, cache):
    (csrc / "toy.cu").write_text(SOURCE.replace("twice(", "thrice("))
    with pytest.raises(RuntimeError) as raised:
        _toy(csrc)
    first, *log = str(raised.value).splitlines()
    assert first == ('toy.cu for sm_90 (SIZE=32) does not compile: toy.cu(7): error: identifier "thrice" is undefined')
    assert log
    assert len(str(raised.value)) < 2500
    assert _entries(cache) == []


@needs_nvrtc
def test_a_gpu_newer_than_the_compiler_gets_ptx_that_its_driver_translates(csrc, monkeypatch):
    monkeypatch.setattr(nvrtc.library(), "supported", [75, 80, 90])
    ptx = _toy(csrc, "sm_100")
    assert b".target sm_90" in ptx
    assert ptx.endswith(b"\0")
    assert nvrtc.resources("toy.cu", DEFINES, "sm_100", csrc=csrc) == {}


@needs_nvrtc
def test_a_gpu_older_than_the_compiler_knows_is_named(csrc):
    with pytest.raises(RuntimeError, match=r"NVRTC \d+\.\d+ is made for sm_\d+ and later, not for sm_50"):
        _toy(csrc, "sm_50")


@pytest.mark.parametrize("arch", ["", "90", "sm_", "sm_90 -G", "compute_90", "sm_9O"])
def test_an_architecture_of_another_form_is_refused(csrc, arch):
    with pytest.raises(ValueError, match="an architecture is written like sm_90, not "):
        _toy(csrc, arch)


def test_a_source_that_is_not_there_is_named(csrc):
    with pytest.raises(ValueError, match=r"no CUDA source 'none\.cu' in "):
        nvrtc.cubin("none.cu", (), "sm_90", csrc=csrc)


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_75", "sm_9", "", "hopper"])
def test_only_architectures_that_the_kernels_run_on_are_built_for(arch):
    with pytest.raises(ValueError, match=r"unknown architecture '.*'; NVRTC .* knows sm_80, "):
        nvrtc.check_arch(arch)


def test_without_nvrtc_it_is_said_what_is_missing_and_what_cures_it(csrc, no_nvrtc):
    no_nvrtc()
    said = nvrtc.missing()
    assert said is not None
    assert said.startswith("no NVRTC (libnvrtc.so): no package has it")
    assert said.endswith("(cure: pip install nvidia-cuda-nvrtc)")
    with pytest.raises(RuntimeError, match="no NVRTC"):
        _toy(csrc)


@needs_nvrtc
def test_without_nvrtc_kernels_compiled_before_still_load(csrc, no_nvrtc, compiled):
    code = _toy(csrc)
    no_nvrtc()
    assert _toy(csrc) == code
    assert len(compiled) == 1


@needs_nvrtc
def test_a_library_that_does_not_load_is_passed_over_for_the_next(tmp_path, monkeypatch, no_nvrtc):
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"no library")
    good = nvrtc.library().path
    no_nvrtc()
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter([str(broken), good]))
    assert nvrtc.library().path == good
    nvrtc.library.cache_clear()
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter([str(broken)]))
    assert str(broken) in str(nvrtc.missing())


def test_wheels_come_before_the_system_and_that_before_a_toolkit(tmp_path, monkeypatch):
    wheel, toolkit = tmp_path / "nvidia" / "cu13" / "lib", tmp_path / "toolkit" / "lib64"
    for folder in (wheel, toolkit):
        folder.mkdir(parents=True)
        (folder / "libnvrtc.so.13").write_bytes(b"")
        (folder / "libnvrtc.alt.so.13").write_bytes(b"")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: {"nvidia": spec}[name])
    system = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    assert list(nvrtc._candidates()) == [f"{wheel}/libnvrtc.so.13", *system, f"{toolkit}/libnvrtc.so.13"]


def test_the_newest_of_several_libraries_is_taken(tmp_path):
    names = ("libnvrtc.so.12", "libnvrtc.so.9.2", "libnvrtc.so.13", "libnvrtc.so.13.0.88")
    assert [Path(path).name for path in nvrtc._newest_first(tmp_path / name for name in names)] == [
        "libnvrtc.so.13.0.88",
        "libnvrtc.so.13",
        "libnvrtc.so.12",
        "libnvrtc.so.9.2",
    ]
