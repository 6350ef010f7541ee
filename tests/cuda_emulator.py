"""Runs the kernels of ext/csrc on the CPU, thread by thread, so that a machine without a GPU tests their logic."""

import atexit
import ctypes
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from mambalab import ext

SHIM = Path(__file__).parent / "cuda_emulator"
CSRC = Path(ext.__file__).parent / "csrc"
ORDERS = (("ascending", 0), ("descending", 0), ("shuffled", 1), ("shuffled", 2))
# A GPU stops at an access that is not aligned to its size; the compiler's checks report to the runtime.
CHECKS = ("-fsanitize=alignment,null,bounds,thread",)
COMPILE = (
    "g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-exceptions",
    "-nostdlib",
    f"-I{SHIM}", "-DMAMBALAB_EMULATED=1",
)  # fmt: skip
LIBRARIES = ("-lm", "-lc", "-lgcc")
MOST_THREADS = "1024"

KERNEL = re.compile(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\((?P<bounds>[^()]*)\)\s*)?'
    r"(?P<name>\w+)\s*\(\s*const \w+ \w+\s*\)"
)

_order: tuple[str, int] = ORDERS[0]


class _Launch(ctypes.Structure):
    """`EmulatedLaunch` of runtime.h."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("count", ctypes.c_longlong),
        ("blocks", ctypes.c_longlong),
        ("threads", ctypes.c_longlong),
        ("shared", ctypes.c_longlong),
        ("order", ctypes.c_char_p),
        ("seed", ctypes.c_ulonglong),
        ("message", ctypes.c_char_p),
        ("capacity", ctypes.c_longlong),
    )


class Kernel:
    """One compiled kernel; stands where `mambalab.ext.cuda_launch.Kernel` does."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._name = name
        self._entry = library[f"{name}_emulated"]
        self._entry.restype = None

    def launch(self, blocks: int, threads: int, shared: int, words: Sequence[int]) -> None:
        """Run every block, in the order now set; no blocks are no work. Raises RuntimeError where the kernel errs."""
        if not blocks:
            return
        members = ctypes.create_string_buffer(struct.pack(f"{len(words)}q", *words))
        message = ctypes.create_string_buffer(400)
        kind, seed = _order
        given = _Launch(
            ctypes.addressof(members), len(words), blocks, threads, shared, kind.encode(), seed,
            ctypes.addressof(message), len(message),
        )  # fmt: skip
        self._entry(ctypes.byref(given))
        if message.value:
            raise RuntimeError(f"{self._name}: {message.value.decode()}")


@contextmanager
def order(kind: str, seed: int = 0) -> Iterator[None]:
    """A scope in which threads and blocks take turns in "ascending", "descending" or by-seed "shuffled" order."""
    global _order
    before, _order = _order, (kind, seed)
    try:
        yield
    finally:
        _order = before


def missing() -> str | None:
    """Why nothing can be emulated here; None when it can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "the emulator switches stacks by instructions of x86-64 Linux"
    return None if shutil.which("g++") else "there is no g++"


def kernel(device: torch.device, source: str, name: str, defines: tuple[tuple[str, int], ...]) -> Kernel:
    """What `mambalab.ext.cuda_launch.kernel` returns on a GPU, for tensors of the CPU."""
    return load(CSRC / source, name, defines)


@cache
def load(source: Path, name: str, defines: tuple[tuple[str, int], ...] = ()) -> Kernel:
    """The kernel `name` of any file; raises RuntimeError with the compiler's words when it doesn't compile."""
    bounds = {found["name"]: found["bounds"] or MOST_THREADS for found in KERNEL.finditer(source.read_text("utf-8"))}
    if name not in bounds:
        raise RuntimeError(f"{source.name} has no kernel {name!r}; it has: {', '.join(bounds)}")
    entries = "".join(f"EMULATED_ENTRY({kernel}, {most})\n" for kernel, most in bounds.items())
    return Kernel(_library(source, entries, defines), name)


@cache
def _library(source: Path, entries: str, defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    _runtime()
    text = f'#include "shim.h"\n#include "{source}"\n{entries}'
    options = (*CHECKS, f"-I{source.parent}", f"-I{CSRC}", *(f"-D{key}={value}" for key, value in defines))
    return ctypes.PyDLL(str(_compiled(source.stem, text, options, source.parent)))


@cache
def _runtime() -> ctypes.CDLL:
    return ctypes.PyDLL(str(_compiled("runtime", '#include "runtime.cpp"\n', (), SHIM)), ctypes.RTLD_GLOBAL)


def _compiled(stem: str, text: str, options: tuple[str, ...], folder: Path) -> Path:
    digest = sha256(repr((COMPILE, text, options)).encode())
    for path in sorted({*folder.iterdir(), *CSRC.glob("*"), *SHIM.iterdir()}):
        digest.update(path.read_bytes() if path.suffix in (".cu", ".cuh", ".h", ".cpp") else b"")
    library = _folder() / f"{stem}-{digest.hexdigest()[:24]}.so"
    if not library.exists():
        draft = library.with_suffix(f".{os.getpid()}.so")
        done = subprocess.run(
            [*COMPILE, *options, "-x", "c++", "-", "-o", str(draft), *LIBRARIES],
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"g++ refuses {stem} with {' '.join(options)}:\n{done.stderr[:4000]}")
        draft.replace(library)
    return library


@cache
def _folder() -> Path:
    """Where the compiled kernels lie: a folder of this run, or what MAMBALAB_EMULATOR_CACHE names, to keep them."""
    kept = os.environ.get("MAMBALAB_EMULATOR_CACHE")
    folder = Path(kept or tempfile.mkdtemp(prefix="mambalab-emulator-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not kept:
        atexit.register(shutil.rmtree, folder)
    return folder
